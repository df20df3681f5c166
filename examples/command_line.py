"""How the examples show their arguments."""

import argparse


class ShowDefaults(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """The description as it is, and every default."""
