"""One stage-1 update of one block of weights, and its sample: pure functions.

A block is an array: a large weight, or several small ones in a row.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_bayestune.priors import LaplacePrior
from keras_bayestune.samplers import Sampler, Step, adam_change
from keras_bayestune.updates.elementwise import elementwise

Tensor = Any  # a backend tensor


class Weight(NamedTuple):
    """What an update moves of a block; every array has the block's shape."""

    value: Tensor  # the weights' dtype
    displacement: Tensor | None  # float32, only for weights narrower than float32
    slots: dict[str, Tensor]  # float32, the sampler's, or Adam's
    squares: dict[str, Tensor]  # float32, the metric's, if they have the block's shape


class Moments(NamedTuple):
    """Running means of the score of a block, float32, of its shape."""

    mean: Tensor
    second_moment: Tensor | None  # of its square, if asked


class Lines(NamedTuple):
    """Arrays of a block that are constant along some of its axes, float32."""

    state: dict[str, Tensor]  # the metric's
    gradient: dict[str, Tensor]  # mean squares of the gradient along those axes


def langevin_update(
    weight: Weight,
    anchor: Tensor,
    gradient: Tensor,
    lines: Lines,
    step: Step,
    *,
    decay: float,
    sampler: Sampler,
    prior: LaplacePrior,
    first: int = 0,
) -> tuple[Weight, dict[str, Tensor]]:
    """Return a block under a prior, and the metric's lines, after one update.

    All are as before if not `step.finite`. The displacement is `value - anchor` in
    float32. A weight narrower than float32 would lose most updates to rounding, so
    its displacement is carried in float32 and read again from the weight only where
    somebody else has changed that.

    Args:
        weight: The block before the update; PyTorch may write into it.
        anchor: Its pre-trained values, in the weights' dtype.
        gradient: Of the mean minibatch loss, float32, before `step.gradient_scale`.
        lines: What the metric keeps of rows and columns.
        step: Scalars of this update of this block.
        decay: Weight decay, in units of the learning rate; 0 for none.
        sampler: The rule.
        prior: The prior of the weights.
        first: Position of the first scalar in the streams of noise.
    """
    metric = sampler.metric
    scale = ops.square(step.gradient_scale)
    current = {name: scale * array for name, array in lines.gradient.items()}
    line_state = _chosen(
        step.adapting, metric.next_state(lines.state, current), lines.state
    )
    factors = metric.factors(line_state, step.state_square) if line_state else ()

    def update(
        weight: Weight, arrays: Any, factors: tuple[Tensor, ...], start: int
    ) -> Weight:
        value, displacement, slots, squares = weight
        anchor, gradient = arrays
        dtype = value.dtype
        seen = ops.cast(value - anchor, "float32")
        if displacement is None:
            before = seen
        else:
            carried = anchor + ops.cast(displacement, dtype)
            before = ops.where(ops.equal(carried, value), displacement, seen)
        moved = before
        if decay:
            moved = before - step.learning_rate * decay * ops.cast(value, "float32")
        gradient = gradient * step.gradient_scale
        if squares:
            new = metric.next_state(
                squares, dict.fromkeys(squares, ops.square(gradient))
            )
            squares = _chosen(step.adapting, new, squares)
            factors = metric.factors(squares, step.state_square)
        size = step.step_size
        for factor in factors:
            size = size * factor
        shape = tuple(value.shape)
        noises = tuple(
            sampler.noise(step.keys[k], shape, first + start)
            for k in range(sampler.num_noises)
        )
        after, new_slots = sampler.update(
            moved, gradient, slots, noises, step, size, prior
        )
        # `where` and not a product with 0, which would keep a NaN.
        after = ops.where(step.finite, after, before)
        slots = _chosen(step.finite, new_slots, slots)
        if displacement is None:
            return Weight(value + ops.cast(after - before, dtype), None, slots, squares)
        return Weight(anchor + ops.cast(after, dtype), after, slots, squares)

    return elementwise(update, weight, (anchor, gradient), factors), line_state


def adam_update(
    weight: Weight, gradient: Tensor, step: Step, *, decay: float
) -> Weight:
    """Return a block without a prior, and Adam's moments, after one update.

    All are as before if not `step.finite`. The arguments are those of
    `langevin_update`.
    """

    def update(weight: Weight, gradient: Tensor, *_: Any) -> Weight:
        value, slots = weight.value, weight.slots
        change, momentum, velocity = adam_change(
            gradient * step.gradient_scale,
            slots["momentum"],
            slots["velocity"],
            step.learning_rate,
            step.counted,
        )
        if decay:
            change = change - step.learning_rate * decay * ops.cast(value, "float32")
        new_value = value + ops.cast(change, value.dtype)
        return Weight(
            ops.where(step.finite, new_value, value),
            None,
            _chosen(step.finite, {"momentum": momentum, "velocity": velocity}, slots),
            {},
        )

    return elementwise(update, weight, gradient)


def with_sample(
    moments: Moments,
    weight: Weight,
    anchor: Tensor,
    step: Step,
    *,
    sampler: Sampler,
    prior: LaplacePrior,
) -> Moments:
    """Return the running moments of a block with the score of an updated weight.

    `mean + (score - mean) / n` on a sample step, else the moments as they are. The
    arguments are those of `langevin_update`.
    """

    def update(moments: Moments, arrays: Any, *_: Any) -> Moments:
        mean, second_moment = moments
        (value, displacement, slots, _), anchor = arrays
        if displacement is None:
            displacement = ops.cast(value - anchor, "float32")
        score = sampler.score(displacement, slots, prior)

        def averaged(old: Tensor, new: Tensor) -> Tensor:
            return ops.where(step.sample, old + (new - old) / step.num_samples, old)

        mean = averaged(mean, score)
        if second_moment is not None:
            second_moment = averaged(second_moment, score * score)
        return Moments(mean, second_moment)

    return elementwise(update, moments, (weight, anchor))


def _chosen(
    condition: Tensor, new: dict[str, Tensor], old: dict[str, Tensor]
) -> dict[str, Tensor]:
    return {name: ops.where(condition, new[name], old[name]) for name in new}
