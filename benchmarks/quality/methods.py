"""The methods, and what their choice costs in gradient steps."""

import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

import keras_bayestune as kbt
from benchmarks.quality.suite import Problem, Suite
from keras_bayestune import budgets, selectors
from keras_bayestune.samplers import (
    Authors,
    Collapsed,
    JointLangevin,
    PartiallyAdaptiveMetric,
    ScalarMetric,
    TensorMetric,
)

OURS = "BayesTune"
HEAD_ONLY, FULL, LORA, BITFIT = "head only", "full", "LoRA", "BitFit"
UNBAYESIAN = "movement, partially adaptive"  # BayesTune's dynamics, nothing else of it
NO_FRACTION = HEAD_ONLY, FULL, BITFIT  # these have a size of their own

Scores = dict[str, np.ndarray]


class AdamMovement(selectors.Selector):
    """Movement under Adam; afterwards `rescaled` has the scores times v^(1/4).

    v is Adam's second moment: a per-parameter metric erases how large a gradient is,
    and this puts it back in.
    """

    def __init__(self, rate: float, steps: int):
        self.rate, self.steps = rate, steps
        self.rescaled: Scores = {}

    def compute(self, variables, training):
        """Return `|theta - theta0|`."""
        before = [ops.convert_to_numpy(v.value) for v in variables]
        adam = keras.optimizers.Adam(self.rate, global_clipnorm=1.0)
        training.train(adam, None, self.steps)
        moved = {
            v.path: np.abs(ops.convert_to_numpy(v.value) - start)
            for v, start in zip(variables, before, strict=True)
        }
        # Keras has no public name for them.
        velocities = zip(adam._trainable_variables, adam._velocities, strict=True)
        self.rescaled = {
            variable.path: moved[variable.path] * np.asarray(velocity) ** 0.25
            for variable, velocity in velocities
            if variable.path in moved
        }
        return list(moved.values())


def sampler(suite: Suite, seed: int, **changed) -> kbt.BayesTuneSGLD:
    """Return BayesTune's stage 1 with its defaults for a run of that length."""
    steps = suite.selection_steps
    plan = {"warmup_steps": steps // 4, "burn_in_steps": steps // 2, "seed": seed}
    plan["thinning"] = max(1, steps // 80)  # about 40 draws, however short the run
    return kbt.BayesTuneSGLD(suite.selection_rate, **{**plan, **changed})


def scale(suite, problem, seed, **changed):
    rule = selectors.ScaleSelector(
        sampler(suite, seed, **changed), steps=suite.selection_steps
    )
    return score(rule, suite, problem)


def score(rule, suite, problem):
    return rule.scores(
        problem.model,
        problem.train,
        problem.loss,
        batch_size=suite.batch_size,
        exclude=problem.head,
        callbacks=problem.callbacks,
    )


def bayestune(name, **changed):
    """Return the selection of BayesTune with some arguments changed."""
    return lambda suite, problem, seed: {name: scale(suite, problem, seed, **changed)}


def movement(name, metric):
    """Return the selection of movement under plain descent: no prior, no noise."""

    def select(suite, problem, seed):
        steps = suite.selection_steps
        descent = sampler(
            suite,
            seed,
            sampler=Collapsed(metric),
            noise_scale=0.0,
            warmup_steps=steps,
            burn_in_steps=steps,
        )
        rule = selectors.Movement(descent, steps=steps)
        return {name: score(rule, suite, problem)}

    return select


def movement_adam(suite, problem, seed):
    rule = AdamMovement(suite.movement_rate, suite.selection_steps)
    moved = score(rule, suite, problem)
    return {"movement, Adam": moved, "movement, Adam, v^(1/4)": rule.rescaled}


def gradient_sum(suite, problem, seed):
    steps = gradient_sum_steps(suite, problem)
    return {"gradient sum": score(selectors.GradientSum(steps), suite, problem)}


def fisher(suite, problem, seed):
    rule = selectors.Fisher(suite.fisher_examples)
    return {"Fisher": score(rule, suite, problem)}


def random(suite, problem, seed):
    return {"random": score(selectors.Random(seed), suite, problem)}


def magnitude(suite, problem, seed):
    return {"magnitude": score(selectors.Magnitude(), suite, problem)}


def bitfit(suite, problem, seed):
    return {BITFIT: score(selectors.BitFit(), suite, problem)}


# BayesTune with other arguments.
VARIANTS = {
    "BayesTune, all noise": {"noise_scale": 1.0},
    "BayesTune, scalar metric": {"sampler": Collapsed(ScalarMetric())},
    "BayesTune, scalar metric, all noise": {
        "sampler": Collapsed(ScalarMetric()),
        "noise_scale": 1.0,
    },
    "BayesTune, per-tensor metric": {"sampler": Collapsed(TensorMetric())},
    "BayesTune, per-tensor metric, all noise": {
        "sampler": Collapsed(TensorMetric()),
        "noise_scale": 1.0,
    },
    "BayesTune, exponent 1/4": {"sampler": Collapsed(PartiallyAdaptiveMetric(0.25))},
    "BayesTune, joint Langevin": {"sampler": JointLangevin()},
    "BayesTune, authors' code": {"sampler": Authors()},
}
# What becomes of BayesTune's scores: by which budget they select, and from the last
# values of what stage 2 starts.
SELECTED, HEAD = "selected", "head"
FORMS: dict[str, tuple[budgets.Budget, tuple[str, ...]]] = {
    OURS: (budgets.Global(), ()),
    "BayesTune, last values": (budgets.Global(), (SELECTED, HEAD)),
    "BayesTune, last values, new head": (budgets.Global(), (SELECTED,)),
    "BayesTune, last head": (budgets.Global(), (HEAD,)),
    "BayesTune, relative": (budgets.Relative(), ()),
    "BayesTune, relative, last values": (budgets.Relative(), (SELECTED, HEAD)),
    "BayesTune, per tensor": (budgets.PerTensor(), ()),
    "BayesTune, per neuron": (budgets.PerNeuron(), ()),
}


def form(method):
    """Return budget and start of a method: those of BayesTune, unless it is a form."""
    return FORMS.get(method, FORMS[OURS])


def forms(suite, problem, seed):
    return dict.fromkeys(FORMS, scale(suite, problem, seed))


# What one selection run serves, by method.
SELECTIONS: dict[str, Callable[[Suite, Problem, int], dict[str, Scores]]] = {
    **dict.fromkeys(FORMS, forms),
    "random": random,
    "Fisher": fisher,
    "gradient sum": gradient_sum,
    "magnitude": magnitude,
    "movement, Adam": movement_adam,
    "movement, Adam, v^(1/4)": movement_adam,
    "movement, SGD": movement("movement, SGD", ScalarMetric()),
    BITFIT: bitfit,
    UNBAYESIAN: movement(UNBAYESIAN, PartiallyAdaptiveMetric()),
    **{name: bayestune(name, **changed) for name, changed in VARIANTS.items()},
}
METHODS = (*SELECTIONS, FULL, HEAD_ONLY, LORA)


def rows(problem: Problem) -> int:
    return len(problem.train[1])


def gradient_sum_steps(suite, problem):
    return min(suite.selection_steps, math.ceil(rows(problem) / suite.batch_size))


def selection_steps(method: str, suite: Suite, problem: Problem) -> int:
    """Return the gradient steps that a method spends on its choice."""
    if "movement" in method or "BayesTune" in method:
        return suite.selection_steps
    if method == "gradient sum":
        return gradient_sum_steps(suite, problem)
    if method == "Fisher":  # an example at a time, `batch_size` of them to a step
        examples = min(suite.fisher_examples, rows(problem))
        return math.ceil(examples / suite.batch_size)
    return 0
