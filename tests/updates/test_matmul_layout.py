"""Which einsum is one matrix product, and where a kernel's scalars are in it."""

import numpy as np
import pytest
from keras import ops

from keras_bayestune.updates.matmul_layout import MatmulLayout

PRODUCTS = [  # equation, shapes of input and kernel; KerasHub's attention has these
    ("...a,ab->...b", (2, 3, 4), (4, 5)),
    ("ab,bc->ac", (6, 4), (4, 5)),
    ("abc,cde->abde", (2, 3, 4), (4, 2, 3)),
    ("abcd,cde->abe", (2, 3, 4, 5), (4, 5, 6)),
    ("abcd,ecd->abe", (2, 3, 4, 5), (6, 4, 5)),
    ("abcd,dec->abe", (2, 3, 4, 5), (5, 6, 4)),
    ("bac,cd->adb", (3, 2, 4), (4, 5)),
]


@pytest.mark.parametrize(("equation", "input_shape", "kernel_shape"), PRODUCTS)
def test_gradient_is_the_product_of_aligned_input_and_output(
    equation, input_shape, kernel_shape
):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=input_shape), rng.normal(size=kernel_shape)
    layout = MatmulLayout.parse(equation, kernel_shape)
    dy = rng.normal(size=np.einsum(equation, x, kernel).shape)
    aligned = [
        ops.convert_to_numpy(array).astype("float64")
        for array in (
            layout.aligned_input(ops.convert_to_tensor(x)),
            layout.aligned_output(ops.convert_to_tensor(dy)),
        )
    ]
    rows, columns = layout.rows_and_columns(np.arange(kernel.size))
    found = (aligned[0].T @ aligned[1])[rows, columns]

    # sum(y dy) is linear in the kernel, so its slope is a difference of any size.
    expected = [
        (np.einsum(equation, x, unit.reshape(kernel_shape)) * dy).sum()
        for unit in np.eye(kernel.size)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (layout.rows * layout.columns) == kernel.size


@pytest.mark.parametrize(
    "equation",
    [
        "abc,cbd->abd",  # b is in all three: a product per b
        "abc,cd->ad",  # b is summed over without the kernel
        "ab,bb->a",  # a diagonal
        "ab,cd->abcd",  # nothing is summed over
        "ab,b->a",  # nothing is put out
    ],
)
def test_other_einsums_are_no_matrix_product(equation):
    kernel = equation.split(",")[1].split("->")[0]
    assert MatmulLayout.parse(equation, (2,) * len(kernel)) is None
