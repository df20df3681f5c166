"""One stage-1 update of one weight tensor, generic over backends."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from keras import ops

from keras_bayestune.priors import LaplacePrior
from keras_bayestune.samplers import DECAY, Sampler, Step, adam_change
from keras_bayestune.updates.branch import branch
from keras_bayestune.updates.pieces import Elementwise

Tensor = Any  # a backend tensor

_SQUARE = "gradient_square"  # the slot of a metric, see `Metric.initial_slots`


class Weight(NamedTuple):
    """What an update moves of one weight tensor; all of the weight's shape."""

    value: Tensor  # the weight's dtype
    displacement: Tensor | None  # float32, only for weights narrower than float32
    slots: dict[str, Tensor]  # float32, the sampler's and the metric's


class Moments(NamedTuple):
    """Running means of the score of one weight tensor, float32."""

    mean: Tensor
    second_moment: Tensor | None  # of its square, if asked


class Single(NamedTuple):
    """What one weight tensor has beside its arrays."""

    step_size: Tensor  # float32 (), h
    mean_square: Tensor  # float32 (), s
    decay: Tensor | float  # weight decay times learning rate; 0.0 for none
    streams: tuple[int, ...]  # of its `sampler.num_noises` noises


def weight_update(
    step: Step, sampler: Sampler, prior: LaplacePrior
) -> Callable[..., Weight]:
    """Return the update of one weight tensor.

    It takes a tuple of a weight, its anchor, the gradient of the mean minibatch loss
    (float32, before `step.gradient_scale`) and, for joined weights, a `PerScalar`,
    which goes before step size and streams of the second argument, a `Single`; third,
    for factored weights, the step size's factors of rows and of columns. It returns
    the weight after one update, equal to before if not `step.finite`.

    The displacement is `value - anchor` in float32. A weight narrower than float32
    would lose most updates to rounding, so its displacement is carried in float32
    and read again from the weight only where somebody else has changed that.

    Args:
        step: Scalars of this update.
        sampler: The rule.
        prior: The prior of the weights.
    """

    def update(arrays: Any, scalars: Single, factors: Any, start: int) -> Weight:
        (value, displacement, slots), anchor, gradient, joint = arrays
        step_size, mean_square, decay, streams = scalars
        dtype = value.dtype
        seen = ops.cast(value - anchor, "float32")
        if displacement is None:
            before = seen
        else:
            carried = anchor + ops.cast(displacement, dtype)
            before = ops.where(ops.equal(carried, value), displacement, seen)
        moved = before
        if not isinstance(decay, float):  # else 0: eagerly it would cost a pass
            moved = before - decay * ops.cast(value, "float32")
        if joint is not None:
            step_size, noises = joint
        else:
            shape = tuple(value.shape)
            noises = tuple(
                sampler.noise(step.seed, step.count, stream, shape, start)
                for stream in streams
            )
        gradient = gradient * step.gradient_scale
        own = {}
        if _SQUARE in slots:
            old = slots[_SQUARE]
            square = DECAY * old + (1.0 - DECAY) * ops.square(gradient)
            square = ops.where(step.adapting, square, old)
            unit = ops.maximum(mean_square, 1e-30) * step.bias_correction
            step_size = step_size * sampler.metric.factor(square / unit)
            own[_SQUARE] = square
        elif factors is not None:
            step_size = step_size * factors[0] * factors[1]
        after, new_slots = sampler.update(
            moved, gradient, slots, noises, step, step_size, prior
        )
        new_slots = {**new_slots, **own}
        # `where` and not a product with 0, which would keep a NaN.
        after = ops.where(step.finite, after, before)
        new_slots = {
            name: ops.where(step.finite, slot, slots[name])
            for name, slot in new_slots.items()
        }
        if displacement is None:
            return Weight(value + ops.cast(after - before, dtype), None, new_slots)
        return Weight(anchor + ops.cast(after, dtype), after, new_slots)

    return Elementwise(update)


def adam_update(
    value: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    velocity: Tensor,
    decay: Tensor | float,
    step: Step,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight without a prior, and Adam's moments, after one update.

    All three are as before if not `step.finite`. `decay` as in `Single`.
    """
    gradient = gradient * step.gradient_scale
    change, new_momentum, new_velocity = adam_change(
        gradient, momentum, velocity, step.learning_rate, ops.maximum(step.count, 1)
    )
    change = change - decay * ops.cast(value, "float32")
    return (
        ops.where(step.finite, value + ops.cast(change, value.dtype), value),
        ops.where(step.finite, new_momentum, momentum),
        ops.where(step.finite, new_velocity, velocity),
    )


def with_sample(
    weights: Sequence[tuple[Moments, Weight, Tensor]],
    priors: Sequence[LaplacePrior],
    step: Step,
    sampler: Sampler,
) -> list[Moments]:
    """Return the running moments of each weight after this update.

    On a sample step `mean + (score - mean) / n`, else the moments as they are.

    Args:
        weights: Moments before the update, the updated weight, and its anchor.
        priors: The prior of each of them.
        step: Scalars of this update.
        sampler: The rule.
    """

    def updated(prior: LaplacePrior, arrays: Any, *_: Any) -> Moments:
        (mean, second_moment), weight, anchor = arrays
        displacement = weight.displacement
        if displacement is None:
            displacement = ops.cast(weight.value - anchor, "float32")
        score = sampler.score(displacement, weight.slots, prior)
        mean = mean + (score - mean) / step.num_samples
        if second_moment is not None:
            change = score * score - second_moment
            second_moment = second_moment + change / step.num_samples
        return Moments(mean, second_moment)

    def take() -> tuple[Tensor, ...]:
        update = functools.cache(lambda prior: Elementwise(partial(updated, prior)))
        return _present(
            [
                update(prior)(arrays)
                for arrays, prior in zip(weights, priors, strict=True)
            ]
        )

    moments = [old for old, _, _ in weights]
    after = iter(branch(step.sample, take, lambda: _present(moments)))
    return [
        Moments(next(after), None if old.second_moment is None else next(after))
        for old in moments
    ]


def _present(moments: Sequence[Moments]) -> tuple[Tensor, ...]:
    return tuple(tensor for pair in moments for tensor in pair if tensor is not None)
