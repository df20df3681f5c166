import json

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_bayestune.deltas import SparseDelta
from keras_bayestune.deltas.shira import TorchLinear, load_shira, save_shira

MODULES = {
    "query/kernel": TorchLinear("layer.0.self.query"),
    "output/kernel": TorchLinear("layer.0.output.dense", input_axes=2),
}


def build(seed=0):
    """Kernels as in an attention layer: (6, 2, 4) and back, (2, 4, 6)."""
    inputs = keras.Input((3, 6))
    x = keras.layers.EinsumDense("bsi,ihd->bshd", (3, 2, 4), name="query")(inputs)
    x = keras.layers.EinsumDense("bshd,hdo->bso", (3, 6), bias_axes="o", name="output")(
        x
    )
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def tuned_at(flat_indices):
    """The base and a model with some scalars moved: `{path: flat indices}`."""
    base, tuned = build(), build()
    for variable in tuned.weights:
        if variable.path in flat_indices:
            values = np.array(keras.ops.convert_to_numpy(variable.value))
            values.reshape(-1)[flat_indices[variable.path]] += 0.25
            variable.assign(values)
    return base, tuned


def test_entries_are_those_of_the_torch_weight(tmp_path):
    base, tuned = tuned_at({"query/kernel": [0, 13, 47], "output/kernel": [5, 6]})
    delta = SparseDelta.from_checkpoints(base, tuned)
    save_shira(delta, tmp_path / "shira", MODULES)
    config = json.loads((tmp_path / "shira" / "adapter_config.json").read_text())
    assert config["peft_type"] == "SHIRA"
    assert config["r"] == 1
    assert config["target_modules"] == ["layer.0.output.dense", "layer.0.self.query"]
    tensors = load_file(tmp_path / "shira" / "adapter_model.safetensors")
    assert len(tensors) == 4
    for path, module in MODULES.items():
        indices = tensors[f"base_model.model.{module.name}.shira_indices"]
        weights = tensors[f"base_model.model.{module.name}.shira_weight"]
        assert (indices.dtype, weights.dtype) == ("int32", "float32")
        assert indices.shape == (2, 14)  # r = 1, 6 and 8 features
        assert weights.shape == (14,)
        # As PEFT does: a matrix of outputs by inputs, double entries add up.
        inputs = 6 if path == "query/kernel" else 8
        added = np.zeros((14 - inputs, inputs))
        np.add.at(added, tuple(indices), weights)
        moved = [
            keras.ops.convert_to_numpy(w.value)
            for model in (tuned, base)
            for w in model.weights
            if w.path == path
        ]
        expected = (moved[0] - moved[1]).reshape(inputs, -1).T
        np.testing.assert_allclose(added, expected, atol=1e-7)


def test_round_trip(tmp_path):
    base, tuned = tuned_at({"query/kernel": [0, 13, 47], "output/kernel": [5, 6]})
    delta = SparseDelta.from_checkpoints(base, tuned)
    save_shira(delta, tmp_path / "shira", MODULES)
    loaded = load_shira(tmp_path / "shira", base, MODULES)
    assert loaded.fingerprint == delta.fingerprint
    for path, stored in delta.variables.items():
        np.testing.assert_array_equal(stored.indices, loaded.variables[path].indices)
        np.testing.assert_allclose(
            stored.values, loaded.variables[path].values, rtol=1e-6
        )


def test_indices_as_floats(tmp_path):
    base, tuned = tuned_at({"query/kernel": [0, 13, 47]})
    delta = SparseDelta.from_checkpoints(base, tuned)
    save_shira(delta, tmp_path / "shira", MODULES)
    weights = tmp_path / "shira" / "adapter_model.safetensors"
    tensors = {
        name: tensor.astype("float32") for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights)
    loaded = load_shira(tmp_path / "shira", base, MODULES)
    assert loaded.variables["query/kernel"].indices.tolist() == [0, 13, 47]


def test_what_does_not_fit(tmp_path):
    base, tuned = tuned_at({"query/kernel": [0], "output/bias": [1]})
    delta = SparseDelta.from_checkpoints(base, tuned)
    with pytest.raises(ValueError, match="1 variables .* do not fit.*output/bias"):
        save_shira(delta, tmp_path / "shira", MODULES)
    save_shira(delta.without(["output/bias"]), tmp_path / "shira", MODULES)
    with pytest.raises(ValueError, match="selects nothing"):
        save_shira(delta.without(delta.variables), tmp_path / "none", MODULES)
    whole = SparseDelta.from_checkpoints(base, tuned, always=["output/kernel"])
    with pytest.raises(ValueError, match="do not fit.*output/kernel"):
        save_shira(whole.without(["output/bias"]), tmp_path / "none", MODULES)
    dense = SparseDelta.from_checkpoints(*tuned_at({"query/kernel": np.arange(48)}))
    with pytest.raises(ValueError, match="needs r = 4, which makes 56 entries.*48"):
        save_shira(dense, tmp_path / "none", MODULES)
    with pytest.raises(ValueError, match="with input_axes=3 it is no matrix"):
        save_shira(dense, tmp_path / "none", {"query/kernel": TorchLinear("query", 3)})
    assert [path.name for path in tmp_path.iterdir()] == ["shira"]


def test_what_cannot_be_read(tmp_path):
    base, tuned = tuned_at({"query/kernel": [47], "output/kernel": [5]})
    folder = tmp_path / "shira"
    save_shira(SparseDelta.from_checkpoints(base, tuned), folder, MODULES)
    with pytest.raises(ValueError, match="2 tensors have no module"):
        load_shira(folder, base, {"query/kernel": MODULES["query/kernel"]})
    with pytest.raises(ValueError, match="1 paths of `modules` are not in the model"):
        load_shira(folder, base, {**MODULES, "other/kernel": TorchLinear("other")})
    wrong = {**MODULES, "query/kernel": TorchLinear("layer.0.self.query", 2)}
    with pytest.raises(ValueError, match="indices outside query/kernel"):
        load_shira(folder, base, wrong)
    weights = folder / "adapter_model.safetensors"
    name = "base_model.model.layer.0.self.query.shira_indices"
    tensors = load_file(weights)
    save_file({**tensors, name: tensors[name][:, :3]}, weights)
    with pytest.raises(
        ValueError, match=r"must have shape \(2, 14\). Received: \(2, 3"
    ):
        load_shira(folder, base, MODULES)
    weights.write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match="is damaged"):
        load_shira(folder, base, MODULES)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ValueError, match="no SHiRA adapter: its `peft_type` is 'LORA'"):
        load_shira(folder, base, MODULES)
    for text in ("[1]", "[" * 100_000, "{"):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match="adapter_config.json is damaged"):
            load_shira(folder, base, MODULES)
