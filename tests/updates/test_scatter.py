import os
import subprocess
import sys

import keras
import ml_dtypes  # noqa: F401  (registers "bfloat16" with NumPy)
import numpy as np
import pytest

from keras_bayestune.updates import scatter

# On JAX, small variables are copied and large ones scattered in place.
SHAPES = [(), (1,), (7,), (3, 4), (5, 2, 3), (70, 40, 30)]


def new_variable(shape, dtype, seed=0):
    array = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    return keras.Variable(array, dtype=dtype), array


def some_indices(size, count, seed=1):
    choice = np.random.default_rng(seed).choice(size, count, replace=False)
    return np.sort(choice).astype("int32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reads_and_writes_only_the_given_indices(shape, dtype):
    variable, array = new_variable(shape, dtype)
    expected = array.reshape(-1).copy()
    for count in {1, array.size // 3 or 1, min(array.size, 9)}:
        indices = some_indices(array.size, count)
        read = scatter.gather_flat(variable, indices)
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, expected[indices])

        values = np.random.default_rng(count).normal(size=count).astype(dtype)
        scatter.assign_flat(variable, indices, values)
        expected[indices] = values
        now = keras.ops.convert_to_numpy(variable.value)
        assert now.dtype == dtype
        assert now.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(3, 4), (300, 300)], ids=str)
def test_fast_path_agrees_with_the_copy(shape):
    fast, array = new_variable(shape, "float32")
    copied, _ = new_variable(shape, "float32")
    indices = some_indices(array.size, 11)
    values = np.array([np.nan, -0.0, np.inf, 1e-45, *range(7)], "float32")
    scatter.assign_flat(fast, indices, values)
    scatter.assign_by_copy(copied, indices, values)
    both = [keras.ops.convert_to_numpy(v.value).tobytes() for v in (fast, copied)]
    assert both[0] == both[1]
    read = scatter.gather_flat(fast, indices)
    assert read.tobytes() == scatter.gather_by_copy(fast, indices).tobytes()
    assert read.tobytes() == values.tobytes()


def test_no_indices():
    variable, array = new_variable((300, 300), "float32")
    nothing = np.empty(0, "int64")
    assert scatter.gather_flat(variable, nothing).shape == (0,)
    scatter.assign_flat(variable, nothing, np.empty(0, "float32"))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), array)


def test_values_are_cast():
    variable = keras.Variable(np.zeros((2, 2)), dtype="bfloat16")
    scatter.assign_flat(variable, np.array([3]), np.array([1.0009765625]))
    assert keras.ops.convert_to_numpy(variable.value).astype("float32")[1, 1] == 1.0


def test_result_is_a_copy():
    variable, array = new_variable((300, 300), "float32")
    indices = np.arange(5)
    read = scatter.gather_flat(variable, indices)
    scatter.assign_flat(variable, indices, np.zeros(5))
    np.testing.assert_array_equal(read, array.reshape(-1)[:5])
    read[:] = 7.0
    assert not keras.ops.convert_to_numpy(variable.value).reshape(-1)[:5].any()


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX donation")
def test_a_host_view_of_the_old_value_keeps_its_content():
    variable, array = new_variable((300, 300), "float32")
    view = np.asarray(variable.value)
    scatter.assign_flat(variable, np.arange(9), np.full(9, 5.0))
    np.testing.assert_array_equal(view, array)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch memory order")
def test_transposed_memory():
    variable, array = new_variable((300, 300), "float32")
    variable.value.data = variable.value.data.T.contiguous().T
    assert not variable.value.is_contiguous()
    scatter.assign_flat(variable, np.array([1]), np.array([5.0]))
    array[0, 1] = 5.0
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), array)
    assert scatter.gather_flat(variable, np.array([1])).tolist() == [5.0]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX shardings")
def test_a_write_keeps_what_is_compiled_and_does_not_copy():
    import jax

    variable, _ = new_variable((300, 300), "float32")
    calls = []

    @jax.jit
    def total(array):
        calls.append(array.shape)
        return array.sum()

    total(variable.value)
    scatter.assign_flat(variable, np.arange(9), np.zeros(9))
    address = variable.value.unsafe_buffer_pointer()
    total(variable.value)
    scatter.assign_flat(variable, np.arange(9), np.ones(9))
    assert variable.value.unsafe_buffer_pointer() == address
    assert len(calls) == 1
    assert not variable.value.committed


SHARDED = """
import keras, numpy as np
from keras_bayestune.updates import scatter
mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"))
layouts = keras.distribution.LayoutMap(mesh)
layouts[".*kernel"] = (None, "model")
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
)
layer = keras.layers.Dense(400)
layer.build((None, 300))
sharding = layer.kernel.value.sharding
assert len(sharding.device_set) == 4
array = np.array(layer.kernel.value)
indices = np.arange(5, array.size, 177)
np.testing.assert_array_equal(
    scatter.gather_flat(layer.kernel, indices), array.reshape(-1)[indices]
)
scatter.assign_flat(layer.kernel, indices, np.ones(len(indices)))
array.reshape(-1)[indices] = 1.0
np.testing.assert_array_equal(np.array(layer.kernel.value), array)
assert layer.kernel.value.sharding == sharding
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX shardings")
def test_a_sharded_variable_stays_sharded(root):
    flags = "--xla_force_host_platform_device_count=4"
    subprocess.run(
        [sys.executable, "-c", SHARDED],
        check=True,
        cwd=root,
        env={**os.environ, "XLA_FLAGS": flags},
    )
