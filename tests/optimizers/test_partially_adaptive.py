"""A step size per scalar, in the optimizer: against float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, Collapsed
from keras_bayestune.samplers import PartiallyAdaptiveMetric
from keras_bayestune.updates import pieces
from keras_bayestune.updates.rows_and_columns import RowsAndColumns, mean_squares

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
        "mean_square": 4,
        "line_squares": 160 * 4 + 30 + 150 + 120,
        "w2_gradient_square": 40 * 30,
        "w3_gradient_square": 70,
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
    monkeypatch.setattr(pieces, "PIECE", 1 << 12)
    parts = _run(_optimizer(**changed), _weights(), _gradients(4))
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_weight_without_a_gradient_counts_as_0():
    weights = _weights()
    optimizer = _optimizer()
    optimizer.build(weights)
    (gradient,) = _gradients(1)
    kept = [0, 2, 3]
    optimizer.apply(
        [ops.convert_to_tensor(gradient[i]) for i in kept], [weights[i] for i in kept]
    )
    lines = ops.convert_to_numpy(
        next(v for v in optimizer.variables if v.name == "line_squares")
    )
    assert (lines[:670] > 0).all()
    assert (lines[670:] == 0).all()
    np.testing.assert_array_equal(
        ops.convert_to_numpy(weights[1]), ops.convert_to_numpy(_weights()[1])
    )


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 6), (300, 1), (2, 1000)])
def test_mean_squares(monkeypatch, shape):
    monkeypatch.setattr(pieces, "PIECE", 64)
    gradient = np.random.default_rng(2).normal(size=shape).astype("float32")
    rows, columns = mean_squares(ops.convert_to_tensor(gradient))
    matrix = gradient.astype("float64").reshape(-1, shape[-1]) ** 2
    np.testing.assert_allclose(ops.convert_to_numpy(rows), matrix.mean(1), rtol=2e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(columns), matrix.mean(0), rtol=2e-6)


def test_rows_and_columns_in_one_tensor():
    lines = RowsAndColumns([(4, 3, 2), (5, 6)])
    assert lines.size == 12 + 2 + 5 + 6
    rng = np.random.default_rng(3)
    parts = [rng.uniform(1, 2, size).astype("float32") for size in (12, 2, 5, 6)]
    flat = lines.joined(
        [
            tuple(map(ops.convert_to_tensor, parts[:2])),
            tuple(map(ops.convert_to_tensor, parts[2:])),
        ]
    )
    row, column = lines.of_weight(0, flat)
    assert (tuple(row.shape), tuple(column.shape)) == ((4, 3, 1), (1, 1, 2))
    np.testing.assert_array_equal(ops.convert_to_numpy(row).ravel(), parts[0])
    np.testing.assert_array_equal(ops.convert_to_numpy(column).ravel(), parts[1])
    relative = ops.convert_to_numpy(lines.relative(flat, ops.convert_to_tensor(0.7)))
    expected = [parts[0] / 0.7, parts[1] / parts[0].mean()]
    expected += [parts[2] / 0.7, parts[3] / parts[2].mean()]
    np.testing.assert_allclose(relative, np.concatenate(expected), rtol=1e-6)
