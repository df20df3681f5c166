"""The bytes of a step: compact gradients do away with those of the whole weights."""

import keras
import pytest

pytest.importorskip("keras_hub")


@pytest.mark.long
@pytest.mark.skipif(keras.backend.backend() != "jax", reason="reads a program of JAX")
def test_compact_gradients_take_less_than_the_tied_table():
    memory = pytest.importorskip("benchmarks.memory")
    beside = []
    for compact in (False, True):
        model = memory.build("4m", "float32", remat=False)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(memory.optimizer("stage 2", model, None), loss)
        beside.append(memory.step_bytes(model, 1, 16, compact)[2])
    table = 4 * 16384 * 128
    assert beside[0] > table > beside[1]
