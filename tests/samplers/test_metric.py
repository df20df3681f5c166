"""Step sizes against NumPy."""

import numpy as np
import pytest
from keras import ops

from keras_bayestune.samplers import IdentityMetric, ScalarMetric, TensorMetric

SQUARES = np.array([3.1, 0.4, 7.7], "float32")
SIZES = np.array([50.0, 8.0, 21.0], "float32")


def _pooled(metric):
    pooled = metric.pool(list(map(ops.convert_to_tensor, SQUARES)), SIZES.tolist())
    return ops.convert_to_numpy(pooled)


def test_scalar_metric_pools_all_scalars():
    expected = SQUARES.sum() / SIZES.sum()
    np.testing.assert_allclose(_pooled(ScalarMetric()), expected, rtol=1e-6)


def test_tensor_metric_pools_each_tensor():
    np.testing.assert_allclose(_pooled(TensorMetric()), SQUARES / SIZES, rtol=1e-6)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (ScalarMetric(), 0.02 / (np.sqrt(SQUARES) + 1e-5)),
        (TensorMetric(), 0.02 / (np.sqrt(SQUARES) + 1e-5)),
        (IdentityMetric(), np.full(3, 0.02)),
    ],
)
def test_step_size(metric, expected):
    step_size = metric.step_size(0.02, ops.convert_to_tensor(SQUARES))
    np.testing.assert_allclose(ops.convert_to_numpy(step_size), expected, rtol=1e-6)
