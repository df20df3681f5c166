"""What a step asks of the device grows only if somebody changes a number here."""

import keras
import pytest

pytest.importorskip("keras_hub")
dispatch = pytest.importorskip("benchmarks.dispatch")

BACKEND = keras.backend.backend()
# Of 12 layers; docs/performance.md shows them beside Keras's Adam.
MOST_OPERATIONS = {"stage 1": 860, "stage 2": 380, "stage 2, compact": 320}


@pytest.mark.skipif(BACKEND != "torch", reason="counts operations of PyTorch")
@pytest.mark.parametrize("name", MOST_OPERATIONS)
def test_operations_of_the_optimizers_part(name):
    found = dispatch.counts(name)
    assert 0 < found["kernels"] < found["operations"] <= MOST_OPERATIONS[name]
    # The one of stage 1 is its `if` for a sample, taken on a CPU only.
    assert found["waits for the device"] == (name == "stage 1")
    assert found["copies to the device"] <= 5
