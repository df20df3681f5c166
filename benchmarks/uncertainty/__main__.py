"""Run blocks and print tables: see `python -m benchmarks.uncertainty -h`."""

import argparse
import json
from pathlib import Path

from benchmarks import uncertainty
from benchmarks.uncertainty import blocks, chains, sampling, table
from benchmarks.uncertainty.methods import METHODS
from benchmarks.uncertainty.suites import SUITES, Flowers, ShortText


def new_blocks(args, file):
    """Yield the suite with the tasks and seeds that the file lacks."""
    suite = SUITES[args.suite]
    needs = {ShortText: (args.preset, args.jsonl), Flowers: (args.prepared,)}
    suite = suite(*needs.get(suite, ()))
    done = {json.dumps(r["block"], sort_keys=True) for r in read(file)}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for task in args.tasks or suite.tasks:
            block = {"task": task, "seed": seed, "fraction": args.fraction}
            if json.dumps(block, sort_keys=True) not in done:
                yield suite, task, seed


def add(records, file):
    """Write the records of a block at once: what is killed is run again."""
    with open(file, "a", encoding="utf-8") as opened:
        opened.write("".join(f"{json.dumps(r)}\n" for r in records))


def run(args, file):
    for suite, task, seed in new_blocks(args, file):
        chosen = args.methods or list(METHODS)
        add(blocks.run(suite, task, seed, args.fraction, chosen, args.keep), file)


def compare_chains(args, file):
    file = file.with_name(f"chains-{args.suite}.jsonl")
    for suite, task, seed in new_blocks(args, file):
        add([chains.run(suite, task, seed, args.fraction)], file)
    print(chains.markdown(read(file)))


def sample(args, file):
    suite = SUITES[args.suite]()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for task in args.tasks or suite.tasks:
            print(f"{task}, seed {seed}")
            sampling.run(suite, task, seed, args.fraction)


def show(args, file):
    print(table.markdown(read(file)))


def read(file):
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


DO = {"run": run, "table": show, "sampling": sample, "chains": compare_chains}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=uncertainty.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("do", choices=DO)
    parser.add_argument("--suite", default="digits", choices=SUITES)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument(
        "--methods", nargs="+", help="; ".join(METHODS).replace("%", "%%")
    )
    parser.add_argument("--fraction", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--preset", help="text: BertBackbone preset or folder")
    parser.add_argument("--jsonl", type=Path, help="text: folder of the tasks' folders")
    parser.add_argument(
        "--prepared", type=Path, help="flowers: what benchmarks.transfer prepared"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder for blocks that are cut short"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"uncertainty-{args.suite}.jsonl"
    DO[args.do](args, file)


if __name__ == "__main__":
    main()
