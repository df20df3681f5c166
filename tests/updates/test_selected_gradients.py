"""Gradients of selected scalars against NumPy in float64."""

import numpy as np
import pytest
from keras import ops

from keras_bayestune.updates import selected_gradients
from keras_bayestune.updates.matmul_layout import MatmulLayout

ROWS, COLUMNS = 12, 20


def kernel_gradient(selected, jit_compile=True):
    layout = MatmulLayout.parse("...a,ab->...b", (ROWS, COLUMNS))
    return selected_gradients.kernel_gradient(
        layout, np.array(selected), True, jit_compile
    )


def tensors(*arrays, dtype="float32"):
    return [ops.convert_to_tensor(array.astype(dtype)) for array in arrays]


@pytest.mark.parametrize("batch", [(3, 8), (5, 7), (1,)])
@pytest.mark.parametrize(
    "selected",
    [
        pytest.param([0, 21, 43, 65, 87, 109, 131, 153, 239], id="entries"),
        pytest.param([45, 46, 47, 65, 66, 67, 85, 87], id="block"),
        pytest.param([7], id="one"),
    ],
)
@pytest.mark.parametrize("jit_compile", [True, False])
def test_kernel_gradient_at_selected_entries(batch, selected, jit_compile):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(*batch, ROWS)), rng.normal(size=(*batch, COLUMNS))
    found = kernel_gradient(selected, jit_compile)(*tensors(x, dy))
    dense = x.reshape(-1, ROWS).T @ dy.reshape(-1, COLUMNS)
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), dense.reshape(-1)[selected], rtol=1e-4, atol=1e-5
    )


def test_a_kernel_stored_with_its_columns_first():
    rng = np.random.default_rng(0)
    layout = MatmulLayout.parse("na,ba->nb", (COLUMNS, ROWS))
    selected = np.arange(0, ROWS * COLUMNS, 7)
    x, dy = rng.normal(size=(9, ROWS)), rng.normal(size=(9, COLUMNS))
    found = selected_gradients.kernel_gradient(layout, selected, True)(*tensors(x, dy))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found),
        (dy.T @ x).reshape(-1)[selected],
        rtol=1e-4,
        atol=1e-5,
    )


def test_table_gradient_sums_the_rows_that_look_up_one_entry():
    rng = np.random.default_rng(0)
    ids = np.array([[3, 0, 3], [7, 3, 8]])  # 9 is never looked up
    dy = rng.normal(size=(2, 3, 4))
    dense = np.zeros((10, 4))
    np.add.at(dense, ids, dy)
    selected = np.array([0, 2, 12, 13, 15, 28, 33, 38, 39])
    gradient = selected_gradients.table_gradient((10, 4), selected, force=True)
    found = gradient(ops.convert_to_tensor(ids, "int32"), *tensors(dy))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), dense.reshape(-1)[selected], rtol=1e-5, atol=1e-6
    )


def test_the_whole_gradient_is_preferred_where_many_scalars_are_selected():
    layout = MatmulLayout.parse("na,ab->nb", (300, 300))
    spread = np.arange(0, 90_000, 301)
    assert selected_gradients.kernel_gradient(layout, spread[:100]) is not None
    many = np.random.default_rng(0).choice(90_000, 30_000, replace=False)
    assert selected_gradients.kernel_gradient(layout, np.sort(many)) is None
    block = np.arange(300 * 50)  # 50 rows, whole
    assert selected_gradients.kernel_gradient(layout, block) is not None
    small = MatmulLayout.parse("na,ab->nb", (30, 30))
    assert selected_gradients.kernel_gradient(small, spread[:1]) is None


def test_sums_of_half_precision_inputs_are_float32():
    x, dy = np.full((4096, ROWS), 0.5), np.full((4096, COLUMNS), 0.25)
    found = kernel_gradient([0, 39, 78])(*tensors(x, dy, dtype="float16"))
    assert "float32" in str(found.dtype)
    np.testing.assert_allclose(ops.convert_to_numpy(found), 512.0)
