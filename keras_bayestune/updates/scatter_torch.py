"""`gather_flat` and `assign_flat` on PyTorch: indexing of a flat view, in place."""

import keras
import ml_dtypes
import numpy as np
import torch


def supports(variable: keras.Variable) -> bool:
    """Whether the variable's memory is in C order, so that it has a flat view."""
    return variable.value.is_contiguous()


def gather_flat(variable: keras.Variable, indices: np.ndarray) -> np.ndarray:
    """See `scatter.gather_flat`."""
    flat = variable.value.detach().view(-1)
    return _to_numpy(flat[_on_device(indices, flat)])


def assign_flat(
    variable: keras.Variable, indices: np.ndarray, values: np.ndarray
) -> None:
    """See `scatter.assign_flat`."""
    # Detached: shares memory, and autograd does not record the write.
    flat = variable.value.detach().view(-1)
    flat[_on_device(indices, flat)] = _to_tensor(values).to(flat.device)


def read_whole(variable: keras.Variable) -> np.ndarray:
    """See `scatter.read_whole`."""
    return _to_numpy(variable.value.detach())


def assign_whole(variable: keras.Variable, values: np.ndarray) -> None:
    """See `scatter.assign_whole`."""
    variable.assign(_to_tensor(values))


# Keras 3.15 converts bfloat16 by way of float32, which changes the bits of NaN.


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return np.array(tensor.cpu().view(torch.int16)).view(ml_dtypes.bfloat16)
    return np.array(tensor.cpu())


def _to_tensor(values: np.ndarray) -> torch.Tensor:
    if values.dtype == ml_dtypes.bfloat16:
        return torch.tensor(values.view("int16")).view(torch.bfloat16)
    return torch.tensor(values)


def _on_device(indices: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(np.asarray(indices, "int64"), device=like.device)
