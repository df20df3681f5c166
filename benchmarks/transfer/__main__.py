"""Prepare data, run cells, print the table: `python -m benchmarks.transfer -h`."""

import argparse
from pathlib import Path

from benchmarks import transfer
from benchmarks.quality import table
from benchmarks.quality.cells import Results


def prepare(args):
    # Needs TensorFlow, PyTorch and PIL; the other commands do not.
    from benchmarks.transfer import prepare

    for task in args.tasks or [*prepare.TEXT, *prepare.VISION]:
        if task in prepare.VISION:
            prepare.vision_task(args.data, task, args.prepared)
        else:
            length = args.length or prepare.LENGTHS[task]
            prepare.text_task(args.data, task, args.preset, length, args.prepared)
        print(task, flush=True)
    if args.preset:
        prepare.bert(args.preset, args.prepared)
    if args.lite0:
        prepare.lite0(args.lite0, args.prepared, args.data)


def run(args):
    from benchmarks.transfer.cells import Runner, cells_of
    from benchmarks.transfer.rules import RULES
    from benchmarks.transfer.sources import Settings
    from benchmarks.transfer.tasks import Task

    settings = Settings(
        selection_steps=args.selection_steps,
        finetune_steps=args.finetune_steps,
        batch_size=args.batch_size,
        head_steps=args.head_steps,
        together=args.together,
    )
    results = results_of(args)
    for name in args.tasks:
        task = Task(args.prepared, name, args.validation_rows, args.test_rows)
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        cells = cells_of(name, args.methods or RULES, args.fractions, seeds)
        Runner(task, settings, results.folder).run(cells, results)
    print(f"{results.collect()} cells in {results.file}")


def show(args):
    found = results_of(args).read()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    found = {
        cell: record
        for cell, record in found.items()
        if cell.seed in seeds and (not args.methods or cell.method in args.methods)
    }
    print(table.markdown(found, "always", args.tasks))


def show_speed(args):
    from benchmarks.transfer import speed
    from benchmarks.transfer.sources import Settings
    from benchmarks.transfer.tasks import Task

    settings = Settings(batch_size=args.batch_size)
    for name in args.tasks:
        task = Task(args.prepared, name)
        numbers = sorted({1, args.together})
        found = speed.measure(task, settings, args.fractions[0], numbers, args.steps)
        for what, rate in found:
            print(f"{name}  {what}: {rate:.2f} run-steps a second", flush=True)


def results_of(args):
    label = args.label or f"transfer-{args.selection_steps}-{args.finetune_steps}"
    return Results(label, args.out, args.collected)


DO = {"prepare": prepare, "run": run, "table": show, "speed": show_speed}


def main(argv=None):
    """Do what the command line says."""
    parser = argparse.ArgumentParser(
        description=transfer.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("do", choices=DO)
    parser.add_argument("--prepared", type=Path, default=Path("results/prepared"))
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--data", type=Path, help="prepare: folder of the data sets")
    parser.add_argument("--preset", help="prepare: BertBackbone preset or folder")
    parser.add_argument("--lite0", type=Path, help="prepare: PyTorch state dict")
    parser.add_argument("--length", type=int, help="prepare: tokens; else by task")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.005])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--selection-steps", type=int, default=600)
    parser.add_argument("--finetune-steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--head-steps", type=int, default=100)
    parser.add_argument("--together", type=int, default=1, help="runs side by side")
    parser.add_argument("--steps", type=int, default=20, help="speed: of each run")
    parser.add_argument("--validation-rows", type=int, help="at most so many")
    parser.add_argument("--test-rows", type=int, help="likewise")
    parser.add_argument("--label", help="name of the results; else by the steps")
    parser.add_argument("--out", type=Path, default=Path("results/transfer"))
    parser.add_argument("--collected", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    DO[args.do](args)


if __name__ == "__main__":
    main()
