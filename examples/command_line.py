"""What the command lines of the examples share, without the imports of a backend."""

import argparse
import json


class ShowDefaults(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """The description as it is, and every default."""


def add_training(add, selection_steps, finetune_steps):
    """Add what is trained, and for how long, by a parser's `add_argument`."""
    none = argparse.SUPPRESS  # no default to show
    add(
        "--method",
        choices=["bayestune", "full", "head"],
        default="bayestune",
        help="train a few scalars and the head, all weights, or the head alone",
    )
    add("--fraction", type=float, default=0.005, help="of the scalars to train")
    stage_1, rest = "steps of stage 1", "steps of all that follows"
    add("--selection-steps", type=int, default=selection_steps, help=stage_1)
    add("--finetune-steps", type=int, default=finetune_steps, help=rest)
    add("--steps-per-epoch", type=int, default=100, help="of what `fit` calls an epoch")
    add("--backup-dir", default=none, help="folder from which a killed run goes on")
    add("--selection-learning-rate", type=float, default=1e-4, help="of stage 1")
    rate = "of the rest (default: 1e-3; with full: 1e-4)"
    add("--learning-rate", type=float, default=none, help=rate)


def save_and_print(folder, result):
    """Write the numbers of a run to `folder`/result.json, and a line for each."""
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        print(f"{name:42} {value}")
