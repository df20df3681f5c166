"""Gradients of selected scalars on PyTorch; see `selected_gradients`."""

import warnings
from typing import Any

import numpy as np
import torch
from keras.src.backend.torch.core import get_device


def products(x: Any, dy: Any, rows: np.ndarray, columns: np.ndarray, step: int) -> Any:
    """Sums over n of `x[n, rows] * dy[n, columns]`: a sampled dense-dense product."""
    order = None
    if (np.diff(rows.astype("int64") * dy.shape[1] + columns) <= 0).any():
        order = np.lexsort((columns, rows))  # the kernel is stored in another order
        rows, columns = rows[order], columns[order]
    starts = np.searchsorted(rows, np.arange(x.shape[1] + 1))
    with warnings.catch_warnings():
        # Once per process PyTorch (2.9) says that its CSR tensors are in beta.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        pattern = torch.sparse_csr_tensor(
            torch.as_tensor(starts, device=x.device),
            torch.as_tensor(columns.astype("int64"), device=x.device),
            torch.zeros(len(rows), device=x.device),
            (x.shape[1], dy.shape[1]),
            check_invariants=False,
        )
        sums = torch.sparse.sampled_addmm(pattern, x.float().T, dy.float(), beta=0.0)
    if order is None:
        return sums.values()
    values = torch.empty_like(sums.values())
    values[torch.as_tensor(order, device=x.device)] = sums.values()
    return values


products_uncompiled = products


def lookups(
    ids: Any, dy: Any, rows: np.ndarray, columns: np.ndarray, entries: int
) -> Any:
    """As `selected_gradients_jax.lookups`."""
    ids = ids.long()
    count = len(ids)
    place = torch.full((entries,), count, device=ids.device)
    place[ids] = torch.arange(count, device=ids.device)
    sums = torch.zeros((count + 1, dy.shape[1]), device=dy.device)
    sums.index_add_(0, place[ids], dy.float())
    at = [torch.as_tensor(a, device=ids.device).long() for a in (rows, columns)]
    return sums[place[at[0]], at[1]]


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, x, probe, gradient):
        ctx.save_for_backward(x)
        ctx.gradient = gradient
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        return dy, None, ctx.gradient(*ctx.saved_tensors, dy), None


def with_gradient(y: Any, x: Any, probe: Any, gradient: Any) -> Any:
    """See `selected_gradients.with_gradient`."""
    return _WithGradient.apply(y, x.detach(), probe, gradient)


def recording() -> Any:
    """See `selected_gradients.recording`."""
    return torch._C._are_functorch_transforms_active()


def slowdown(jit_compile: bool = True) -> int:
    """Both run on all cores."""
    return 1


def is_faster_here(jit_compile: bool) -> bool:
    """See `selected_gradients.is_faster_here`."""
    return not jit_compile and get_device() == "cpu"
