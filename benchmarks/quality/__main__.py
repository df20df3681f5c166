"""Run cells, gather them, print the table: see `python -m benchmarks.quality -h`."""

import argparse
import time
from pathlib import Path

from benchmarks import quality
from benchmarks.quality import cells, figure, methods, stability, table
from benchmarks.quality.digits import Digits
from benchmarks.quality.photographs import Photographs
from benchmarks.quality.text import Text
from benchmarks.quality.vit import Vit


def new_suite(args):
    if issubclass(args.suite, Text):
        return args.suite(args.preset, args.jsonl, args.data_dir)
    if issubclass(args.suite, Photographs):
        return args.suite(args.prepared)
    return args.suite()


def run(args):
    suite = new_suite(args)
    results = results_of(args)
    masks = cells.Masks(suite, args.out)
    finished = results.read()
    plan = cells.cells_of(
        args.tasks or suite.tasks,
        args.methods or methods.METHODS,
        args.fractions or suite.fractions,
        args.head,
        range(args.first_seed, args.first_seed + args.seeds),
    )
    for cell in dict.fromkeys(plan):
        if cell in finished:
            continue
        start = time.perf_counter()
        record = cells.run_cell(suite, cell, masks)
        if record is None:
            continue
        results.write(cell, record)
        metric, value = next(iter(record["test"].items()))
        print(
            f"{time.perf_counter() - start:6.1f} s  seed {cell.seed}  {cell.task}  "
            f"{cell.method}  {cell.fraction}  {metric} {value:.4f}",
            flush=True,
        )


def results_of(args):
    return cells.Results(args.suite.label(), args.out, args.collected)


def collect(args):
    results = results_of(args)
    print(f"{results.collect()} cells in {results.file}")


def asked_for(args, results):
    """Return the finished cells of the methods and seeds of the command line."""
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    chosen = args.methods or methods.METHODS
    return {
        cell: record
        for cell, record in results.read().items()
        if cell.seed in seeds and cell.method in chosen
    }


def show(args):
    print(table.markdown(asked_for(args, results_of(args)), args.head, args.tasks))


def show_ranks(args):
    suites = {
        label: asked_for(args, cells.Results(label, args.out, args.collected))
        for label in args.labels
    }
    print(table.together(suites, args.head))


def draw(args):
    figure.save(asked_for(args, results_of(args)), args.head, args.figure)
    print(args.figure)


def show_stability(args):
    suite = new_suite(args)
    suite.fractions = tuple(args.fractions or suite.fractions)
    figures = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for task in args.tasks or suite.tasks:
            figures[task, seed] = stability.measure(suite, task, seed, args.chains)
            print(f"seed {seed}  {task}", flush=True)
    print(stability.markdown(figures))


DO = {
    "run": run,
    "collect": collect,
    "table": show,
    "ranks": show_ranks,
    "figure": draw,
    "stability": show_stability,
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=quality.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    suites = {suite.name: suite for suite in (Digits, Photographs, Text, Vit)}
    parser.add_argument("do", choices=DO)
    parser.add_argument("--suite", default="digits", choices=suites)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--methods", nargs="+", help="; ".join(methods.METHODS))
    parser.add_argument("--fractions", nargs="+", type=float)
    parser.add_argument("--head", default="always", choices=["always", "competes"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--selection-steps", type=int, help="default: the suite's")
    parser.add_argument("--finetune-steps", type=int, help="default: the suite's")
    parser.add_argument("--rates", nargs="+", type=float, help="of stage 2, likewise")
    parser.add_argument("--labels", nargs="+", help="ranks: names of collected files")
    parser.add_argument("--figure", type=Path, default=Path("results/errors.png"))
    parser.add_argument("--chains", type=int, default=4, help="stability: per task")
    parser.add_argument("--preset", help="text: BertBackbone preset or folder")
    parser.add_argument("--jsonl", type=Path, help="text: folder of the tasks' folders")
    parser.add_argument("--data-dir", help="text: where TFDS keeps its data sets")
    parser.add_argument(
        "--prepared", type=Path, help="photographs: what benchmarks.transfer prepared"
    )
    parser.add_argument("--out", type=Path, default=Path("results/quality"))
    parser.add_argument("--collected", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    changed = {
        name: getattr(args, name)
        for name in ("selection_steps", "finetune_steps", "rates")
        if getattr(args, name)
    }
    suite = suites[args.suite]
    args.suite = type(suite.__name__, (suite,), changed)
    DO[args.do](args)


if __name__ == "__main__":
    main()
