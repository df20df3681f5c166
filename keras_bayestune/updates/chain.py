"""The scalars of a chain, and of one stage-1 update before any weight moves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops

from keras_bayestune.noise import stream_keys
from keras_bayestune.samplers import (
    DECAY,
    SMALLEST_SQUARE,
    Sampler,
    Step,
    bias_correction,
)

Tensor = Any  # a backend tensor


class Chain(NamedTuple):
    """The scalars that live from one update to the next."""

    count: Tensor  # int32 (), updates that were not skipped
    samples: Tensor  # int32 (), posterior samples taken
    skipped: Tensor  # int32 (), updates skipped for a non-finite gradient
    effective_size: Tensor  # float32 (), N; 0 while it is not known
    mean_square: Tensor  # float32 () or, if the metric is per tensor, (V,), s
    noise_per_step: Tensor  # float32 (), of the last update
    seed: Tensor  # int32 ()


class Schedule(NamedTuple):
    """When what happens: the optimizer's arguments."""

    warmup_steps: int
    burn_in_steps: int
    thinning: int
    noise_scale: float
    measure_effective_size: bool
    global_clipnorm: float | None


def next_step(
    chain: Chain,
    squares: Sequence[Tensor],
    prior_squares: Sequence[Tensor],
    sizes: Sequence[float],
    num_rows: int,
    learning_rate: Tensor,
    sampler: Sampler,
    schedule: Schedule,
) -> tuple[Step, Chain]:
    """Return the scalars of this update, and the chain's after it.

    A gradient with a NaN or an infinity anywhere makes the update a skipped one: it
    is counted, and nothing else changes. The gradients are clipped to their global
    norm by one factor that the update of each weight multiplies in, which saves a
    pass over all of them.

    Args:
        chain: Scalars before the update.
        squares: Sum of the squared gradient of every weight, float32 scalars.
        prior_squares: The same, of the V weight tensors under a prior.
        sizes: Number of scalars of each of those V, 0 where no gradient came.
        num_rows: Rows of weights under a prior; each has its own streams of noise.
        learning_rate: float32 scalar.
        sampler: The rule of the update.
        schedule: When what happens.
    """
    # By way of the norms, because XLA would write a sum of scalars out in the loop of
    # each weight, and the square of a norm stays finite for longer.
    norms = ops.sqrt(ops.stack(squares))
    square = ops.dot(norms, norms)
    finite = ops.isfinite(square)
    count = chain.count + ops.cast(finite, "int32")
    counted = count + ops.cast(count < 1, "int32")  # 1 if the first was skipped
    gradient_scale = ops.ones_like(square)
    if schedule.global_clipnorm is not None:
        limit = schedule.global_clipnorm
        gradient_scale = limit / ops.threshold(ops.sqrt(square), limit, limit)
    pooled = sampler.metric.pool(prior_squares, sizes) * ops.square(gradient_scale)
    mean_square = ops.where(
        finite, DECAY * chain.mean_square + (1.0 - DECAY) * pooled, chain.mean_square
    )
    corrected = mean_square / bias_correction(DECAY, counted)
    step_size = sampler.metric.step_size(learning_rate, corrected)
    last = max(schedule.burn_in_steps, 1)
    is_late = ops.cast(counted > last, "int32")
    state_count = counted * (1 - is_late) + last * is_late
    above_0 = ops.threshold(corrected, SMALLEST_SQUARE, SMALLEST_SQUARE)

    first_active = sampler.first_active_step(schedule.warmup_steps)
    effective_size = chain.effective_size
    if schedule.measure_effective_size:
        measured = sampler.auto_effective_size(learning_rate, step_size, corrected)
        now = finite & (count - max(first_active - 1, 1) == 0)
        effective_size = ops.where(now, measured, effective_size)

    since_burn_in = count - schedule.burn_in_steps
    sample = finite & (since_burn_in > 0) & (since_burn_in % schedule.thinning == 0)
    samples = chain.samples + ops.cast(sample, "int32")
    since_warmup = ops.cast(count - (first_active - 1), "float32")
    streams = sampler.num_noises * num_rows
    step = Step(
        count=count,
        counted=counted,
        learning_rate=learning_rate,
        gradient_scale=gradient_scale,
        step_size=step_size,
        state_square=above_0 * bias_correction(DECAY, state_count),
        adapting=finite & (count <= last),
        effective_size=effective_size,
        noise_scale=schedule.noise_scale,
        active=count >= first_active,
        active_count=ops.threshold(since_warmup, 1.0, 1.0),
        finite=finite,
        sample=sample,
        num_samples=ops.threshold(ops.cast(samples, "float32"), 1.0, 1.0),
        keys=stream_keys(chain.seed, count, ops.arange(streams, dtype="int32")),
    )
    noise = sampler.noise_per_step(step) * ops.cast(step.active, "float32")
    after = Chain(
        count=count,
        samples=samples,
        skipped=chain.skipped + 1 - ops.cast(finite, "int32"),
        effective_size=effective_size,
        mean_square=mean_square,
        noise_per_step=noise,
        seed=chain.seed,
    )
    return step, after
