"""Weight times summed gradient against float64."""

import numpy as np
import pytest

from keras_bayestune.selectors import SNIP
from tests.selectors.network import (
    assert_close,
    batches,
    gradients,
    new_data,
    new_model,
    weights_of,
)


@pytest.mark.parametrize("steps", [None, 2])
def test_weight_times_the_sum_over_batches(steps):
    x, y = new_data()
    model = new_model()
    scores = SNIP(steps).scores(model, (x, y), "mse", batch_size=4)
    weights = weights_of(model)
    each = [gradients(weights, *batch) for batch in batches(x, y, 4)[:steps]]
    expected = {p: np.abs(w * sum(g[p] for g in each)) for p, w in weights.items()}
    assert_close(scores, expected)


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"head_steps": -1}])
def test_steps_are_checked(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= "):
        SNIP(**arguments)
