"""SHiRA adapter folders of PEFT: what of a delta fits into one, and back.

PEFT (read in 0.21) stores a SHiRA adapter as two tensors for each `torch.nn.Linear`:
`base_model.model.<module>.shira_indices`, int32 `(2, n)`, rows and columns, and
`...shira_weight`, `(n,)`, displacements that are *added* to the weight. All modules
share one `r`, and n must be `r * (in_features + out_features)`.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import safetensors
import safetensors.numpy

from keras_bayestune.deltas.delta import SparseDelta
from keras_bayestune.deltas.displacements import aligned_displacements
from keras_bayestune.deltas.model_variables import floating_variables, read_variable
from keras_bayestune.deltas.variable import DTYPES, VariableDelta
from keras_bayestune.files import replacing

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


class TorchLinear(NamedTuple):
    """The `torch.nn.Linear` that holds the weight of a Keras kernel, transposed."""

    name: str  # e.g. "bert.encoder.layer.0.attention.self.query"
    input_axes: int = 1  # leading axes of the kernel that are inputs


def save_shira(
    delta: SparseDelta,
    folder: str | os.PathLike[str],
    modules: Mapping[str, TorchLinear],
) -> None:
    """Write a delta as a SHiRA adapter that PEFT loads.

    Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024. Only kernels of linear
    layers fit. PEFT adds displacements, so the tuned weights agree up to the rounding
    of one float32 sum, and each costs 12 bytes. PEFT wants `r * (in + out)` entries in
    every module with one r: shorter ones are filled with zeros.

    Args:
        delta: A delta with base values (`from_model`, or `bind`).
        folder: Where to write; must not exist, or be empty.
        modules: `{variable path: TorchLinear}` of every variable with a selection.

    Raises:
        ValueError: The delta selects something that does not fit or has no module
            (`delta.without(paths)` takes it out), a kernel cannot be a matrix, or base
            values are unknown.

    Examples:
        >>> import keras, numpy as np
        >>> from keras_bayestune.deltas import SparseDelta
        >>> from keras_bayestune.deltas.shira import TorchLinear, load_shira, save_shira
        >>> def model(kernel):
        ...     layer = keras.layers.Dense(3, use_bias=False, name="query")
        ...     model = keras.Sequential([keras.Input((2,)), layer])
        ...     model.set_weights([np.array(kernel)])
        ...     return model
        >>> base = model([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
        >>> tuned = model([[1.0, 1.0, 1.5], [1.0, 1.0, 1.0]])
        >>> delta = SparseDelta.from_checkpoints(base, tuned)
        >>> modules = {base.weights[0].path: TorchLinear("attention.query")}
        >>> save_shira(delta, "shira", modules)
        >>> with load_shira("shira", base, modules).applied(base):
        ...     base.get_weights()[0].tolist()
        [[1.0, 1.0, 1.5], [1.0, 1.0, 1.0]]
    """
    selected = {path: v for path, v in delta.variables.items() if len(v.values)}
    unfit = [path for path, v in selected.items() if v.is_whole or path not in modules]
    if unfit:
        raise ValueError(
            f"{len(unfit)} variables of the delta do not fit into a SHiRA adapter: "
            f"{unfit[:3]}. It holds kernels of linear layers, named in `modules`, and "
            "no head. Leave the others out with `delta.without(paths)`."
        )
    if not selected:
        raise ValueError("The delta selects nothing, so there is no adapter to write.")
    sides = {path: _sides(path, v.shape, modules[path]) for path, v in selected.items()}
    rank = max(
        math.ceil(len(v.values) / sum(sides[path])) for path, v in selected.items()
    )
    tensors: dict[str, np.ndarray] = {}
    for path, stored in selected.items():
        inputs, outputs = sides[path]
        length = rank * (inputs + outputs)
        if length > inputs * outputs:
            raise ValueError(
                f"The densest module needs r = {rank}, which makes {length} entries in "
                f"{path}, more than it has scalars ({inputs * outputs}). Select a "
                "smaller fraction, or leave the dense or small variables out."
            )
        flat_indices, _, moved, _ = aligned_displacements([stored])
        indices = np.zeros((2, length), "int32")
        weights = np.zeros(length, "float32")
        column, row = np.divmod(flat_indices, outputs)
        indices[:, : len(flat_indices)] = np.stack([row, column])
        weights[: len(flat_indices)] = moved[0]
        name = _PREFIX + modules[path].name
        tensors[f"{name}.shira_indices"] = indices
        tensors[f"{name}.shira_weight"] = weights
    config = {
        "peft_type": "SHIRA",
        "r": rank,
        "target_modules": sorted(modules[path].name for path in selected),
        "mask_type": "random",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_weights": True,
    }
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / _CONFIG).write_text(json.dumps(config, indent=2), "utf-8")
        safetensors.numpy.save_file(tensors, temporary / _WEIGHTS, {"format": "pt"})


def load_shira(
    folder: str | os.PathLike[str],
    model: keras.Model,
    modules: Mapping[str, TorchLinear],
) -> SparseDelta:
    """Read a SHiRA adapter of PEFT as a delta of a Keras model.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`.
        model: The base model, of the weights that the adapter was trained on. PEFT
            stores nothing to check that by.
        modules: `{variable path: TorchLinear}` of every module in the adapter.

    Returns:
        A delta of `model` with `new = base + displacement`, rounded to its dtype.

    Raises:
        ValueError: Not a SHiRA adapter, tensors without a module, unknown variable
            paths, or indices outside a kernel.
    """
    folder = pathlib.Path(folder)
    config = _config(folder / _CONFIG)
    if config.get("peft_type") != "SHIRA":
        raise ValueError(
            f"{folder} holds no SHiRA adapter: its `peft_type` is "
            f"{config.get('peft_type')!r}."
        )
    tensors = _tensors(folder / _WEIGHTS)
    present = floating_variables(model)
    variables = {}
    for path, variable in present.items():
        base = read_variable(variable)
        flat_indices, moved = np.empty(0, "int64"), np.empty(0)
        if path in modules:
            name = _PREFIX + modules[path].name
            flat_indices, moved = _entries(
                path,
                tensors.pop(f"{name}.shira_indices", np.empty((2, 0))),
                tensors.pop(f"{name}.shira_weight", np.empty(0)),
                _sides(path, base.shape, modules[path]),
            )
        values = base.reshape(-1)[flat_indices].astype("float64") + moved
        variables[path] = VariableDelta.sparse(
            base, flat_indices, values.astype(DTYPES[variable.dtype])
        )
    unknown = [path for path in modules if path not in present]
    if unknown or tensors:
        raise ValueError(
            f"The adapter does not fit the model: {len(unknown)} paths of `modules` "
            f"are not in the model ({unknown[:3]}), {len(tensors)} tensors have no "
            f"module ({list(tensors)[:3]})."
        )
    return SparseDelta(variables, {"selector": "shira", "r": config.get("r")})


def _sides(path: str, shape: tuple[int, ...], module: TorchLinear) -> tuple[int, int]:
    """Number of inputs and outputs of a kernel seen as a matrix."""
    if not 0 < module.input_axes < len(shape):
        raise ValueError(
            f"{path} has shape {shape}: with input_axes={module.input_axes} it is no "
            "matrix of inputs and outputs. Only kernels of linear layers fit."
        )
    return (
        math.prod(shape[: module.input_axes]),
        math.prod(shape[module.input_axes :]),
    )


def _config(path: pathlib.Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object.")
    return config


def _tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _entries(
    path: str, indices: Any, weights: Any, sides: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Flat indices and displacements, without zeros; double entries add up."""
    inputs, outputs = sides
    indices, weights = np.asarray(indices), np.asarray(weights)
    if weights.ndim != 1 or indices.shape != (2, len(weights)):
        raise ValueError(
            f"The indices for {path} must have shape (2, {weights.size}). Received: "
            f"{indices.shape}, with values of shape {weights.shape}."
        )
    # PEFT writes the indices as float32 on Windows. Compared as they come: what is
    # no number or too large must not reach the cast.
    with np.errstate(invalid="ignore"):
        rows = np.where(np.abs(indices) < 2**31, indices, -1).astype("int64")
    row, column = rows
    outside = (rows < 0).any() or (row >= outputs).any() or (column >= inputs).any()
    if outside:
        raise ValueError(
            f"The adapter has indices outside {path} ({inputs} inputs, {outputs} "
            "outputs). Is `input_axes` right?"
        )
    flat_indices, where = np.unique(column * outputs + row, return_inverse=True)
    moved = np.zeros(len(flat_indices))
    np.add.at(moved, where, np.asarray(weights, "float64"))
    return flat_indices[moved != 0], moved[moved != 0]
