"""The scalars of one stage-1 update, worked out before any weight moves."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops

from keras_bayestune.samplers import DECAY, Sampler, Step, bias_correction
from keras_bayestune.updates.rows_and_columns import RowsAndColumns

Tensor = Any  # a backend tensor


class Chain(NamedTuple):
    """The scalars that live from one update to the next."""

    count: Tensor  # int32 (), updates that were not skipped
    samples: Tensor  # int32 (), posterior samples taken
    skipped: Tensor  # int32 (), updates skipped for a non-finite gradient
    effective_size: Tensor  # float32 (), N; 0 while it is not known
    mean_square: Tensor  # float32 (V,), s of each weight tensor under the prior
    seed: Tensor  # int32 ()
    squares: Any = None  # float32 (F,), or none, mean squares of rows and columns


class Schedule(NamedTuple):
    """When what happens: the optimizer's arguments."""

    warmup_steps: int
    burn_in_steps: int
    thinning: int
    noise_scale: float
    measure_effective_size: bool
    global_clipnorm: float | None


def begin_step(
    chain: Chain,
    norms: Sequence[Tensor],
    prior_norms: Sequence[Tensor],
    sizes: Sequence[float],
    learning_rate: Tensor,
    sampler: Sampler,
    schedule: Schedule,
    factored: tuple[RowsAndColumns, Tensor] | None = None,
) -> tuple[Step, Chain]:
    """Return the scalars of this update, and the chain's after it.

    A gradient with a NaN or an infinity anywhere makes the update a skipped one: it
    is counted, and nothing else changes. The gradients are clipped to their global
    norm by one factor that the update of each weight multiplies in, which saves a
    pass over all of them.

    Args:
        chain: Scalars before the update.
        norms: Norm of the gradient of every variable, float32 scalars.
        prior_norms: The same, of the V weight tensors under a prior.
        sizes: Number of scalars of each of those V, 0 where no gradient came.
        learning_rate: float32 scalar.
        sampler: The rule of the update.
        schedule: When what happens.
        factored: If weights are factored, their rows and columns, and the mean squares
            of these in the gradient, `(F,)`.
    """
    # `dot`, because XLA would write a sum of scalars out in the loop of each weight.
    stacked = ops.stack(norms)
    square = ops.dot(stacked, stacked)
    finite = ops.isfinite(square)
    count = chain.count + ops.cast(finite, "int32")
    gradient_scale = ops.ones_like(square)
    if schedule.global_clipnorm is not None:
        limit = schedule.global_clipnorm
        gradient_scale = limit / ops.maximum(ops.sqrt(square), limit)
    pooled = sampler.metric.pool(
        ops.square(ops.stack(prior_norms) * gradient_scale),
        ops.maximum(ops.convert_to_tensor(sizes), 1.0),
    )
    mean_square = ops.where(
        finite, DECAY * chain.mean_square + (1.0 - DECAY) * pooled, chain.mean_square
    )
    corrected = mean_square / bias_correction(DECAY, ops.maximum(count, 1))
    step_size = sampler.metric.step_size(learning_rate, corrected)
    last = max(schedule.burn_in_steps, 1)
    adapting = count <= last
    of_squares = bias_correction(DECAY, ops.clip(count, 1, last))
    squares = factors = None
    if factored is not None:
        lines, current = factored
        current = current * ops.square(gradient_scale)
        squares = ops.where(
            ops.logical_and(finite, adapting),
            DECAY * chain.squares + (1.0 - DECAY) * current,
            chain.squares,
        )
        relative = lines.relative(squares / of_squares, corrected[0])
        factors = sampler.metric.factor(relative)

    first_active = sampler.first_active_step(schedule.warmup_steps)
    effective_size = chain.effective_size
    if schedule.measure_effective_size:
        measured = sampler.auto_effective_size(learning_rate, step_size, corrected)
        now = ops.logical_and(finite, ops.equal(count, max(first_active - 1, 1)))
        effective_size = ops.where(now, measured, effective_size)

    since_burn_in = count - schedule.burn_in_steps
    due = ops.equal(since_burn_in % schedule.thinning, 0)
    sample = ops.logical_and(finite, ops.logical_and(since_burn_in > 0, due))
    samples = chain.samples + ops.cast(sample, "int32")
    step = Step(
        count=count,
        learning_rate=learning_rate,
        gradient_scale=gradient_scale,
        step_size=step_size,
        mean_square=corrected,
        adapting=adapting,
        bias_correction=of_squares,
        factors=factors,
        effective_size=effective_size,
        noise_scale=ops.convert_to_tensor(schedule.noise_scale, dtype="float32"),
        active=count >= first_active,
        active_count=ops.cast(ops.maximum(count - first_active + 1, 1), "float32"),
        finite=finite,
        sample=sample,
        num_samples=ops.cast(ops.maximum(samples, 1), "float32"),
        seed=chain.seed,
    )
    after = Chain(
        count=count,
        samples=samples,
        skipped=chain.skipped + 1 - ops.cast(finite, "int32"),
        effective_size=effective_size,
        mean_square=mean_square,
        seed=chain.seed,
        squares=squares,
    )
    return step, after
