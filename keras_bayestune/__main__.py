"""`python -m keras_bayestune inspect FILE`: what a mask, delta or posterior holds."""

import argparse
import sys
from collections.abc import Sequence

from keras_bayestune.inspection import inspect_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser("python -m keras_bayestune", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="say what a file holds, and check it")
    inspect.add_argument("file", nargs="+", help="a mask, a delta or a posterior")
    args = parser.parse_args(arguments)
    failed = False
    for path in args.file:
        try:
            print(inspect_file(path))
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
