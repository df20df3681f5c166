"""A step size per scalar, in the optimizer: against float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, Collapsed
from keras_bayestune.samplers import PartiallyAdaptiveMetric
from keras_bayestune.updates import elementwise
from keras_bayestune.updates.mean_squares import squares_of

SHAPES = [(160, 4, 30), (150, 120), (40, 30), (70,)]  # the first two are factored
FACTORED = 2
RATE, EXPONENT, FLOOR, LIMIT, BURN_IN = 0.01, 0.3, 0.02, 5.0, 3


def _weights():
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=f"w{i}")
        for i, shape in enumerate(SHAPES)
    ]


def _gradients(steps):
    """With sizes that differ from scalar to scalar, row to row, column to column."""
    rng = np.random.default_rng(1)
    sizes = [
        rng.gamma(0.3, size=shape)
        * rng.gamma(2.0, size=(*shape[:-1], 1))
        * rng.gamma(2.0, size=shape[-1:])
        for shape in SHAPES
    ]
    return [
        [(size * rng.normal(size=size.shape)).astype("float32") for size in sizes]
        for _ in range(steps)
    ]


def _optimizer(**changed):
    arguments = {
        "sampler": Collapsed(metric=PartiallyAdaptiveMetric(EXPONENT, FLOOR)),
        "noise_scale": 0.0,
        "effective_size": 1e30,  # no prior worth mentioning
        "warmup_steps": 1,
        "burn_in_steps": BURN_IN,
        "thinning": 1,
        "seed": 0,
        "global_clipnorm": LIMIT,
    }
    return BayesTuneSGLD(RATE, **{**arguments, **changed})


def _run(optimizer, weights, gradients):
    for step in gradients:
        optimizer.apply([ops.convert_to_tensor(g) for g in step], weights)
    return [ops.convert_to_numpy(v) for v in weights]


def test_updates_follow_the_equations():
    steps = 6
    weights = _weights()
    expected = [np.array(ops.convert_to_numpy(w), "float64") for w in weights]
    s, v = 0.0, [0.0] * len(SHAPES)
    r, c = [0.0] * FACTORED, [0.0] * FACTORED
    for t, gradient in enumerate(_gradients(steps), start=1):
        norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradient))
        assert norm > LIMIT
        gradient = [g.astype("float64") * LIMIT / norm for g in gradient]
        mean = LIMIT**2 / sum(g.size for g in gradient)
        s = 0.999 * s + 0.001 * mean
        if t <= BURN_IN:
            before_end = 1 - 0.999**t
            for i, g in enumerate(gradient):
                v[i] = 0.999 * v[i] + 0.001 * g**2
                if i < FACTORED:
                    others = tuple(range(g.ndim - 1))
                    r[i] = 0.999 * r[i] + 0.001 * (g**2).mean(-1, keepdims=True)
                    c[i] = 0.999 * c[i] + 0.001 * (g**2).mean(others, keepdims=True)
        s_hat = s / (1 - 0.999**t)
        for i, g in enumerate(gradient):
            if i < FACTORED:
                base = (r[i] / before_end / s_hat + FLOOR) * (
                    c[i] / r[i].mean() + FLOOR
                )
            else:
                base = v[i] / before_end / s_hat + FLOOR
            expected[i] -= RATE / (np.sqrt(s_hat) + 1e-5) * base**-EXPONENT * g
    optimizer = _optimizer()
    found = _run(optimizer, weights, _gradients(steps))
    for one, other, start in zip(found, expected, _weights(), strict=True):
        start = ops.convert_to_numpy(start)
        np.testing.assert_allclose(one - start, other - start, rtol=2e-4, atol=2e-6)


def test_state_of_large_weights_does_not_grow():
    optimizer = _optimizer()
    optimizer.build(_weights())
    sizes = {v.name: int(np.prod(v.shape)) for v in optimizer.variables}
    squares = {n: size for n, size in sizes.items() if "square" in n}
    assert squares == {
        "mean_square": 1,
        "w0_row_square": 160 * 4,
        "w0_column_square": 30,
        "w1_row_square": 150,
        "w1_column_square": 120,
        "w2_and_1_more_square": 40 * 30 + 70,
    }


def test_a_skipped_update_leaves_no_trace():
    first, second, third = _gradients(3)
    broken = [*second[:-1], np.full(SHAPES[-1], np.nan, "float32")]
    one, other = _optimizer(), _optimizer()
    found = _run(one, _weights(), [first, broken, third])
    expected = _run(other, _weights(), [first, third])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.skipped_steps == 1


def test_pieces_of_whole_rows(monkeypatch):
    """With noise, whose place in a weight must not depend on the pieces."""
    changed = {"noise_scale": 1.0, "effective_size": 1e4}
    whole = _run(_optimizer(**changed), _weights(), _gradients(4))
    monkeypatch.setattr(elementwise, "PIECE", 1 << 12)
    parts = _run(_optimizer(**changed), _weights(), _gradients(4))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_weight_without_a_gradient_stays():
    weights = _weights()
    optimizer = _optimizer()
    optimizer.build(weights)
    (gradient,) = _gradients(1)
    kept = [0, 3]
    optimizer.apply(
        [ops.convert_to_tensor(gradient[i]) for i in kept], [weights[i] for i in kept]
    )
    squares = {v.name: ops.convert_to_numpy(v) for v in optimizer.variables}
    assert (squares["w0_row_square"] > 0).all()
    assert (squares["w0_column_square"] > 0).all()
    assert not squares["w1_row_square"].any()
    assert not squares["w1_column_square"].any()
    assert not squares["w2_and_1_more_square"][: 40 * 30].any()
    assert (squares["w2_and_1_more_square"][40 * 30 :] > 0).all()
    moved = [
        (ops.convert_to_numpy(one) != ops.convert_to_numpy(other)).any()
        for one, other in zip(weights, _weights(), strict=True)
    ]
    assert moved == [True, False, False, True]


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 6), (300, 2), (2, 1000)])
def test_squares(monkeypatch, shape):
    monkeypatch.setattr(elementwise, "PIECE", 64)
    gradient = np.random.default_rng(2).normal(size=shape).astype("float32")
    shapes = {"rows": (*shape[:-1], 1), "columns": (1,) * (len(shape) - 1) + shape[-1:]}
    total, means = squares_of(ops.convert_to_tensor(gradient), shapes)
    square = gradient.astype("float64") ** 2
    expected = {
        "rows": square.mean(-1, keepdims=True),
        "columns": square.mean(tuple(range(len(shape) - 1)), keepdims=True),
    }
    for name, mean in expected.items():
        assert tuple(means[name].shape) == mean.shape
        np.testing.assert_allclose(ops.convert_to_numpy(means[name]), mean, rtol=2e-6)
    np.testing.assert_allclose(float(total), square.sum(), rtol=2e-6)
    total, none = squares_of(ops.convert_to_tensor(gradient), {})
    assert none == {}
    np.testing.assert_allclose(float(total), square.sum(), rtol=2e-6)
