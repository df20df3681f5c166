"""Run cells, gather them, print the table: see `python -m benchmarks.quality -h`."""

import argparse
import time
from pathlib import Path

from benchmarks import quality
from benchmarks.quality import cells, methods, table
from benchmarks.quality.digits import Digits
from benchmarks.quality.text import Text


def new_suite(args):
    if issubclass(args.suite, Text):
        return args.suite(args.preset, args.jsonl, args.data_dir)
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


def show(args):
    print(table.markdown(results_of(args).read(), args.head, args.tasks))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=quality.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    suites = {suite.name: suite for suite in (Digits, Text)}
    parser.add_argument("do", choices=["run", "collect", "table"])
    parser.add_argument("--suite", default="digits", choices=suites)
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--methods", nargs="+", help="; ".join(methods.METHODS))
    parser.add_argument("--fractions", nargs="+", type=float)
    parser.add_argument("--head", default="always", choices=["always", "competes"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--selection-steps", type=int, help="default: the suite's")
    parser.add_argument("--finetune-steps", type=int, help="default: the suite's")
    parser.add_argument("--preset", help="text: BertBackbone preset or folder")
    parser.add_argument("--jsonl", type=Path, help="text: folder of the tasks' folders")
    parser.add_argument("--data-dir", help="text: where TFDS keeps its data sets")
    parser.add_argument("--out", type=Path, default=Path("results/quality"))
    parser.add_argument("--collected", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(argv)
    budget = {
        name: getattr(args, name)
        for name in ("selection_steps", "finetune_steps")
        if getattr(args, name)
    }
    suite = suites[args.suite]
    args.suite = type(suite.__name__, (suite,), budget)
    {"run": run, "collect": collect, "table": show}[args.do](args)


if __name__ == "__main__":
    main()
