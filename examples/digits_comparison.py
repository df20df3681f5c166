"""Does it pay? Masks of several kinds beside each other, from equal weights."""

import time

import keras
import numpy as np
from digits import FULL_RATE, SPARSE_RATE, accuracy, digits, pretrained, sampler, train
from rich.table import Column, Table

import keras_bayestune as kbt

FIGURES = "trained scalars", "accuracy", "seconds", "delta bytes"


def compare(seed, fractions, epochs, show):
    """Part 2, one seed: train with each mask; return {mask: figures}."""
    upright, few, test = digits(seed)
    model = pretrained(seed, upright, epochs, show)
    show.text = f"seed {seed}: stage 1"
    start = time.perf_counter()
    select = kbt.SparseMaskCallback()  # stage 2 follows below, once for each mask
    train(model, sampler(seed, epochs), few, epochs.sampling, select, show)
    seconds_to_choose = time.perf_counter() - start

    # Every mask starts here: backbone as pre-trained, head as stage 1 left it.
    weights = model.get_weights()
    base = {v.path: keras.ops.convert_to_numpy(v) for v in model.trainable_variables}
    head = {v.path: v.shape for v in model.output_dense.trainable_variables}

    def whole(paths):
        indices = {x: np.arange(base[x].size if x in paths else 0) for x in base}
        return kbt.SparseMask(indices, {x: base[x].shape for x in base}, always=paths)

    choose = kbt.SparseMask.from_scores
    rng = np.random.default_rng(seed)
    chance = {path: rng.random(scores.shape) for path, scores in select.scores.items()}
    masks = {"head only": whole(head)}
    for p in fractions:
        masks[f"random {p:.1%}"] = choose(chance, p, always=head)
        masks[f"BayesTune {p:.1%}"] = choose(select.scores, p, always=head)
    masks["full fine-tuning"] = whole(base)

    figures = {}
    for name, mask in masks.items():
        show.text = f"seed {seed}: {name}"
        model.set_weights(weights)
        start = time.perf_counter()
        adam = keras.optimizers.Adam(FULL_RATE if "full" in name else SPARSE_RATE)
        train(model, kbt.SparseOptimizer(adam, mask), few, epochs.finetuning, show)
        seconds = time.perf_counter() - start
        if name.startswith("BayesTune"):
            seconds += seconds_to_choose
        delta = kbt.SparseDelta.from_model(model, mask=mask, base=base)
        found = mask.count, accuracy(model, *test), seconds, delta.nbytes
        figures[name] = dict(zip(FIGURES, found, strict=True))
    return figures


def mean_and_error(values):
    return np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5


def report(runs, fractions, show):
    """Print the table and the differences; return both."""
    columns = (Column(figure, justify="right", no_wrap=True) for figure in FIGURES)
    table = Table("", *columns, title=f"Mean ± standard error of {len(runs)} seeds")
    rows, differences = {}, {}
    for name in runs[0]:
        row = {figure: [run[name][figure] for run in runs] for figure in FIGURES}
        scalars, _, seconds, size = (np.mean(values) for values in row.values())
        mean, error = mean_and_error(row["accuracy"])
        cells = f"{mean:.1f} ± {error:.1f} %", f"{seconds:.1f}", f"{size:,.0f}"
        table.add_row(name, f"{scalars:,.0f}", *cells)
        rows[name] = {"mean accuracy": mean, "standard error": error, **row}
    show.print(table)
    for p in (f"{p:.1%}" for p in fractions):
        ours, random = (rows[f"{x} {p}"]["accuracy"] for x in ("BayesTune", "random"))
        mean, error = mean_and_error(np.subtract(ours, random))
        differences[p] = {"mean": mean, "standard error": error}
        show.print(f"BayesTune - random at p = {p}: {mean:+.2f} ± {error:.2f} points")
    return {"rows": rows, "differences": differences}
