"""Where scores come from: training, gradients, or the weights alone."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

import keras_bayestune as kbt
from benchmarks.transfer.network import orders
from benchmarks.transfer.programs import Run, Selected, Whole
from benchmarks.transfer.tasks import HEAD, Task
from keras_bayestune import selectors
from keras_bayestune.samplers import Collapsed, ScalarMetric
from keras_bayestune.selectors.gradients import GradientAccumulator

Scores = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The budget of every rule, and the rates that are not searched."""

    selection_steps: int = 600
    finetune_steps: int = 600
    batch_size: int = 16
    head_steps: int = 100  # of those of the selection, for rules at the anchors
    selection_rate: float = 1e-4  # of BayesTune and of movement
    together: int = 1

    @property
    def steps(self) -> int:
        """Gradient steps of every rule, its selection included."""
        return self.selection_steps + self.finetune_steps


class Found(NamedTuple):
    """What one source found under one seed."""

    scores: Scores
    weights: list[np.ndarray] | None  # at the end of stage 1, if it moved them
    steps: int  # gradient steps that it took
    seconds: float


# Of a source: {name of its scores: one `Found` for each seed}.
Sources = Callable[[Task, Settings, Sequence[int]], Mapping[str, list[Found]]]


def bayestune(name: str, **changed: Any) -> Sources:
    """Stage 1 of the library, with some arguments changed."""

    def find(task, settings, seeds):
        steps = settings.selection_steps
        plan = {"warmup_steps": steps // 4, "burn_in_steps": steps // 2}
        plan["thinning"] = max(1, steps // 80)  # about 40 draws, however short the run
        arguments = {"learning_rate": settings.selection_rate, **plan, **changed}

        def new(seed):
            return kbt.BayesTuneSGLD(exclude=HEAD, seed=seed, **arguments)

        def scores(sampler, *_):
            return {name: sampler.posterior_scales()}

        return train(task, settings, seeds, new, scores)

    return find


def movement_adam(task, settings, seeds):
    """Movement under Adam, and the same times v^(1/4)."""

    def new(seed):
        return keras.optimizers.Adam(settings.selection_rate, global_clipnorm=1.0)

    def scores(adam, start, end):
        moved = _moved(task, start, end)
        paths = [v.path for v in task.network.model.trainable_variables]
        # Keras has no public name for them.
        squares = dict(zip(paths, adam._velocities, strict=True))
        scaled = {p: m * np.asarray(squares[p]) ** 0.25 for p, m in moved.items()}
        return {"movement, Adam": moved, "movement, Adam, v^(1/4)": scaled}

    return train(task, settings, seeds, new, scores)


def movement_descent(task, settings, seeds):
    """Movement under plain descent: the library's stage 1 without prior and noise."""
    steps = settings.selection_steps

    def new(seed):
        return kbt.BayesTuneSGLD(
            settings.selection_rate,
            sampler=Collapsed(ScalarMetric()),
            noise_scale=0.0,
            warmup_steps=steps,
            burn_in_steps=steps,
            exclude=HEAD,
            seed=seed,
        )

    def scores(_, start, end):
        return {"movement, SGD": _moved(task, start, end)}

    return train(task, settings, seeds, new, scores)


def at_anchors(warm: bool) -> Sources:
    """Gradient sum and SNIP at the pre-trained weights, the head warmed up or new."""
    ending = "" if warm else ", new head"

    def find(task, settings, seeds):
        head_steps = settings.head_steps if warm else 0
        heads = warmed_heads(task, settings, seeds, head_steps)
        whole_pass = math.ceil(len(task.train[1]) / settings.batch_size)
        steps = min(whole_pass, settings.selection_steps - head_steps)
        variables = task.network.model.trainable_variables

        def new(seed):
            return GradientAccumulator(ops.copy)

        def scores(accumulator, *_):
            sums = dict(
                zip(
                    [v.path for v in variables],
                    accumulator.sums(variables),
                    strict=True,
                )
            )
            start = _by_path(task, task.network.weights())
            return {
                f"gradient sum{ending}": {p: np.abs(sums[p]) for p in start},
                f"SNIP{ending}": {p: np.abs(w * sums[p]) for p, w in start.items()},
            }

        found = train(task, settings, seeds, new, scores, steps, heads)
        return {
            name: [f._replace(weights=None, steps=steps + head_steps) for f in of_seeds]
            for name, of_seeds in found.items()
        }

    return find


def fisher(warm: bool) -> Sources:
    """Squared gradients of single examples, the head warmed up or new.

    The library's rule. One example costs as much as its share of a batch.
    """

    def find(task, settings, seeds):
        head_steps = settings.head_steps if warm else 0
        examples = settings.batch_size * (settings.selection_steps - head_steps)
        rule = selectors.Fisher(examples, head_steps=head_steps)
        model = task.network.model
        before, found = model.get_weights(), []
        for seed in seeds:
            model.set_weights([*before[:-2], *task.start(seed)[-2:]])
            found.append(_selected(rule, task, settings, settings.selection_steps))
        model.set_weights(before)
        return {"Fisher": found}

    return find


def of_selector(name: str, new: Callable[[int], selectors.Selector]) -> Sources:
    """A selector of the library that takes no gradient."""

    def find(task, settings, seeds):
        return {name: [_selected(new(seed), task, settings, 0) for seed in seeds]}

    return find


def _selected(rule: selectors.Selector, task, settings, steps: int) -> Found:
    start = time.perf_counter()
    scores = rule.scores(
        task.network.model,
        task.train,
        task.network.loss,
        batch_size=settings.batch_size,
        exclude=HEAD,
    )
    return Found(scores, None, steps, time.perf_counter() - start)


def train(task, settings, seeds, new, scores, steps=None, heads=None):
    """Train all weights under each seed; return what `scores` makes of the ends."""
    network = task.network
    begin = time.perf_counter()
    optimizers, runs = [], []
    for i, seed in enumerate(seeds):
        optimizer = new(seed)
        optimizer.build(network.model.trainable_variables)
        optimizers.append(optimizer)
        start = task.start(seed) if heads is None else task.with_head(heads[i])
        count = steps or settings.selection_steps
        rate = float(optimizer.learning_rate.numpy())
        runs.append(
            Run(
                orders(len(task.train[1]), settings.batch_size, count, seed),
                np.full(count, rate, "float32"),
                start,
                [np.asarray(v.value) for v in optimizer.variables],
            )
        )
    program = Whole(network, optimizers[0], task.train, settings.together)
    found: dict[str, list[Found]] = {}
    for run, optimizer, (end, state) in zip(
        runs, optimizers, program.train(runs), strict=True
    ):
        for variable, value in zip(optimizer.variables, state, strict=True):
            variable.assign(value)
        seconds = (time.perf_counter() - begin) / len(runs)
        for name, of_rule in scores(optimizer, run.start, end).items():
            result = Found(of_rule, end, len(run.order), seconds)
            found.setdefault(name, []).append(result)
    return found


def warmed_heads(task, settings, seeds, steps: int) -> list[np.ndarray]:
    """Return the head of each seed after so many steps of Adam(1e-3)."""
    starts = [task.head_start(seed) for seed in seeds]
    if not steps:
        return starts
    size = len(starts[0])
    indices = np.arange(task.network.count - size, task.network.count, dtype="int32")
    runs = [
        Run(
            # Not the batches whose gradients are summed.
            orders(len(task.train[1]), settings.batch_size, steps, 1000 + seed),
            np.full(steps, 1e-3, "float32"),
            start,
            indices,
        )
        for seed, start in zip(seeds, starts, strict=True)
    ]
    program = Selected(task.network, size, task.train, settings.together)
    return [head for head, _, _ in program.train(runs, [])]


def _by_path(task: Task, weights: Sequence[np.ndarray]) -> Scores:
    """Return what competes, by path."""
    variables = task.network.model.trainable_variables[:-2]
    return {v.path: w for v, w in zip(variables, weights, strict=False)}


def _moved(task: Task, start, end) -> Scores:
    after = _by_path(task, end)
    return {p: np.abs(after[p] - w) for p, w in _by_path(task, start).items()}
