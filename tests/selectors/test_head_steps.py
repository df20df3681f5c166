"""The head is trained before gradients are taken, and nothing of it stays."""

import keras
import numpy as np
import pytest

from keras_bayestune.selectors import SNIP, Fisher, GradientSum
from tests.selectors.network import (
    assert_close,
    batches,
    gradients,
    new_data,
    new_model,
    weights_of,
)

RULES = {
    "gradient sum": (GradientSum, lambda weight, g: np.abs(sum(g))),
    "snip": (SNIP, lambda weight, g: np.abs(weight * sum(g))),
    "fisher": (Fisher, lambda weight, g: sum(one**2 for one in g)),
}


def adam(weights, x, y, steps):
    """Train the head by Adam(1e-3) on all rows, in float64."""
    weights = dict(weights)
    moments = {path: (0.0, 0.0) for path in ("head/kernel", "head/bias")}
    for t in range(1, steps + 1):
        found = gradients(weights, x, y)
        for path, (m, v) in moments.items():
            m = 0.9 * m + 0.1 * found[path]
            v = 0.999 * v + 0.001 * found[path] ** 2
            moments[path] = m, v
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
            weights[path] = weights[path] - 1e-3 * m_hat / (np.sqrt(v_hat) + 1e-7)
    return weights


@pytest.mark.parametrize("name", RULES)
def test_gradients_are_those_under_the_trained_head(name):
    selector, rule = RULES[name]
    x, y = new_data()
    model = new_model(loss="mse")
    before = weights_of(model)
    scores = selector(head_steps=40).scores(
        model, (x, y), batch_size=10, exclude=["^head/"]
    )
    weights = adam(before, x, y, 40)
    size = 1 if name == "fisher" else 10
    found = [gradients(weights, *batch) for batch in batches(x, y, size)]
    expected = {
        path: rule(before[path], [g[path] for g in found])
        for path in ("body/kernel", "body/bias")
    }
    assert_close(scores, expected, rtol=2e-4)
    cold = selector().scores(model, (x, y), batch_size=10, exclude=["^head/"])
    assert any(
        not np.allclose(cold[p], score, rtol=1e-2) for p, score in scores.items()
    )
    for path, value in weights_of(model).items():
        assert np.array_equal(value, before[path])
    assert len(model.trainable_variables) == 4


def test_without_a_head_nothing_is_trained():
    data = new_data()
    history = keras.callbacks.History()
    warm = GradientSum(head_steps=5).scores(
        new_model(), data, "mse", callbacks=[history]
    )
    assert len(history.history["loss"]) == 1  # the pass that takes gradients
    cold = GradientSum().scores(new_model(), data, "mse")
    for path, score in cold.items():
        assert np.array_equal(warm[path], score)
