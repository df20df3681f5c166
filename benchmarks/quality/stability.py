"""How sure BayesTune's choice is: between chains, and within one.

A chain is one run of stage 1 on one task with one network; chains differ in the order
of the data, the new head's start staying the same, and in the noise. The other rules
that train are run as often, with the order of the data alone to tell them apart.
"""

import warnings

import keras
import numpy as np

import keras_bayestune as kbt
from benchmarks.quality import methods
from benchmarks.quality.evaluation import batches
from benchmarks.quality.suite import Problem, Suite
from keras_bayestune.callbacks.scale_trace import ScaleTrace
from keras_bayestune.diagnostics import (
    effective_sample_size,
    overlap_matrix,
    selection_frequency,
    selection_probability,
)

ALL = 2**31 - 1  # scalars to follow


class Record(keras.callbacks.Callback):
    """Keeps each draw of every scale."""

    def __init__(self, optimizer: kbt.BayesTuneSGLD):
        super().__init__()
        self.trace = ScaleTrace(optimizer.running_means(), ALL)

    def on_train_batch_end(self, batch, logs=None):
        """Look whether a step was sampled."""
        self.trace.record(self.model.optimizer)  # `self.model` syncs the state on JAX


def chain(suite: Suite, problem: Problem, seed: int):
    """Return means, second moments and draws `(draws, scalars)` of one chain."""
    model = keras.Model(problem.model.input, problem.model.output)
    model.set_weights(problem.weights)
    sampler = methods.sampler(suite, seed, exclude=problem.head, second_moment=True)
    sampler.build(model.trainable_variables)
    model.compile(sampler, problem.loss)
    record = Record(sampler)
    with warnings.catch_warnings():
        # Masks are made from its scales here.
        warnings.filterwarnings("ignore", "`fit` with BayesTuneSGLD ended without")
        model.fit(
            batches(problem.train, suite.batch_size, seed),
            steps_per_epoch=suite.selection_steps,
            shuffle=False,
            verbose=0,
            callbacks=[record],
        )
    means, squares = sampler.posterior_scales(), sampler.posterior_second_moments()
    return means, squares, record.trace.samples()


def measure(suite: Suite, task: str, seed: int, chains: int) -> dict[str, dict]:
    """Return {method: {p: figures}} of one task."""
    problem = suite.problem(task, seed, "always")
    scores: dict[str, list[methods.Scores]] = {methods.OURS: []}
    runs = []
    for number in range(chains):
        runs.append(chain(suite, problem, 1000 * seed + number))
        scores[methods.OURS].append(runs[-1][0])
        keras.utils.set_random_seed(1000 * seed + number)  # the order of the data
        for rule in ("movement, SGD", "movement, Adam"):
            problem.model.set_weights(problem.weights)
            found = methods.SELECTIONS[rule](suite, problem, seed)
            for method, of_chain in found.items():
                scores.setdefault(method, []).append(of_chain)
    figures: dict[str, dict] = {}
    for method, of_chains in scores.items():
        for p in suite.fractions:
            masks = [kbt.SparseMask.from_scores(s, p) for s in of_chains]
            overlap = overlap_matrix(masks)[np.triu_indices(chains, 1)].mean()
            figures.setdefault(method, {})[p] = {"overlap": overlap}
            if method == methods.OURS:
                figures[method][p] |= _within(runs, masks, p)
    return figures


def _within(runs, masks, p) -> dict[str, float]:
    """Return what a chain says of itself, and whether the others agree."""
    chosen = {path: index for path, index in masks[0].indices.items() if len(index)}
    pick = lambda found: np.concatenate(  # noqa: E731
        [found[path].ravel()[index] for path, index in chosen.items()]
    )
    means, squares, draws = runs[0]
    sizes = effective_sample_size(draws)
    ends = np.cumsum([0, *(mean.size for mean in means.values())])
    by_path = {
        path: sizes[a:b] for path, a, b in zip(means, ends, ends[1:], strict=False)
    }
    effective = float(np.median(pick(by_path)))
    probability = selection_probability(means, squares, effective, p)
    return {
        "draws": len(draws),
        "effective draws": effective,
        "probability": float(pick(probability).mean()),
        "agreement": float(pick(selection_frequency(masks[1:])).mean()),
    }


def markdown(figures: dict[tuple[str, int], dict[str, dict]]) -> str:
    """Return two tables, means over tasks and seeds of what `measure` found."""
    found = list(figures.values())
    fractions = sorted(found[0][methods.OURS])
    mean = lambda method, p, name: np.mean([f[method][p][name] for f in found])  # noqa: E731
    lines = ["| overlap of two chains | " + " | ".join(map(percent, fractions)) + " |"]
    lines.append("| --- |" + " --- |" * len(fractions))
    for method in found[0]:
        cells = " | ".join(f"{mean(method, p, 'overlap'):.2f}" for p in fractions)
        lines.append(f"| {method} | {cells} |")
    chance = " | ".join(f"{p:.2f}" for p in fractions)
    lines += [f"| chance | {chance} |", ""]
    lines.append("| BayesTune, selected scalars | " + lines[0].split(" | ", 1)[1])
    lines.append("| --- |" + " --- |" * len(fractions))
    for name, label in (
        ("draws", "draws of a chain"),
        ("effective draws", "effective draws, median"),
        ("probability", "probability in the top p, by the chain itself"),
        ("agreement", "share of the other chains that choose it"),
    ):
        values = [mean(methods.OURS, p, name) for p in fractions]
        lines.append(f"| {label} | " + " | ".join(f"{v:.2f}" for v in values) + " |")
    return "\n".join(lines)


def percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"
