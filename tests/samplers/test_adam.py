"""Bias corrections in float32 against float64."""

import numpy as np
import pytest
from keras import ops

from keras_bayestune.samplers import DECAY, bias_correction


@pytest.mark.parametrize("decay", [0.9, DECAY])
def test_bias_correction(decay):
    counts = np.unique(np.geomspace(1, 1e6, 1000).astype("int32"))
    found = ops.convert_to_numpy(bias_correction(decay, ops.convert_to_tensor(counts)))
    exact = -np.expm1(counts * np.log(decay))
    np.testing.assert_allclose(found, exact, rtol=1e-6)
