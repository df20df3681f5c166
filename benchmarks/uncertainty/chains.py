"""Whether scores averaged over chains choose better than those of one chain."""

import collections
import copy

import numpy as np

import keras_bayestune as kbt
from benchmarks.quality import methods
from benchmarks.quality.evaluation import batches, evaluate
from benchmarks.quality.stage2 import Stage2
from benchmarks.uncertainty.table import mean_and_error

CHAINS = 4
ONE, MEAN, LONG = (
    "one chain",
    f"mean of {CHAINS} chains",
    f"one, {CHAINS} times as long",
)


def run(suite, task, seed, fraction):
    """Return a record: test figures by choice, and what the chains say."""
    problem = suite.problem(task, seed, "always")
    chains = _chains(suite, problem, seed, CHAINS)
    longer = copy.copy(suite)
    longer.selection_steps = CHAINS * suite.selection_steps
    long = _chains(longer, problem, seed, 1).mean_scores
    figures = collections.defaultdict(list)
    choices = [(ONE, scores) for scores in chains.scores]
    for choice, scores in [*choices, (MEAN, chains.mean_scores), (LONG, long)]:
        figures[choice].append(_stage_two(suite, problem, scores, fraction, seed))
    statistics = chains.statistics().values()
    apart = chains.overlap(fraction)[np.triu_indices(CHAINS, 1)]
    sure = np.concatenate(
        [p.ravel() for p in chains.selection_probability(fraction).values()]
    )
    return {
        "block": {"task": task, "seed": seed, "fraction": fraction},
        "figures": {
            choice: np.mean(found, axis=0).tolist() for choice, found in figures.items()
        },
        "chains": {
            "overlap of two masks": float(apart.mean()),
            "in all four top p": float(np.mean(sure[sure > 0] == 1)),
            "R-hat, largest": max(s.r_hat for s in statistics),
            "bulk size, least": min(s.bulk for s in statistics),
            "tail size, least": min(s.tail for s in statistics),
        },
    }


def _chains(suite, problem, seed, count):
    problem.model.set_weights(problem.weights)
    selector = kbt.selectors.ScaleSelector(
        methods.sampler(suite, 1000 * seed), steps=suite.selection_steps, chains=count
    )
    return kbt.run_chains(
        selector,
        problem.model,
        problem.train,
        problem.loss,
        seed=1000 * seed,
        verbose=0,
        batch_size=suite.batch_size,
        exclude=problem.head,
    )


def _stage_two(suite, problem, scores, fraction, seed):
    """Return accuracy and NLL on test data, at the rate of the best validation."""
    model = problem.model
    head = {
        v.path: tuple(v.shape)
        for v in model.trainable_variables
        if v.path not in scores
    }
    mask = kbt.SparseMask.from_scores(scores, fraction, always=head)
    model.set_weights(problem.weights)
    stage2 = Stage2(model, mask, problem.loss, suite.compiles_once)
    found = []
    for rate in suite.rates:
        data = batches(problem.train, suite.batch_size, seed)
        stage2.train(data, suite.finetune_steps, rate)
        value = evaluate(problem, model, problem.validation)
        test = evaluate(problem, model, problem.test)
        found.append(((value["accuracy"], -value["NLL"]), test))
    best = max(found, key=lambda pair: pair[0])[1]
    return best["accuracy"], best["NLL"]


def markdown(records):
    """Return two tables, means over blocks."""
    lines = [f"{len(records)} blocks.", "", "| mask from | accuracy | NLL |"]
    lines.append("| --- | --- | --- |")
    single = np.array([r["figures"][ONE] for r in records])
    for choice in (ONE, MEAN, LONG):
        found = np.array([r["figures"][choice] for r in records])
        cells = f"{100 * found[:, 0].mean():.2f} | {found[:, 1].mean():.4f}"
        if choice != ONE:
            better = found - single
            cells = (
                f"{100 * found[:, 0].mean():.2f} "
                f"({mean_and_error(100 * better[:, 0])}) | "
                f"{found[:, 1].mean():.4f} ({mean_and_error(better[:, 1])})"
            )
        lines.append(f"| {choice} | {cells} |")
    lines += ["", "| of four chains | mean |", "| --- | --- |"]
    for name in records[0]["chains"]:
        mean = np.mean([r["chains"][name] for r in records])
        lines.append(f"| {name} | {mean:.2f} |")
    return "\n".join(lines)
