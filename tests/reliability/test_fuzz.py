"""Every file that the library reads, changed at random: a ValueError, or it loads.

Half of the inputs are raw (bytes flipped, cut, repeated), half are changed inside and
signed again, so that they get past the checksum.
"""

import json
import os
import time
import tracemalloc
import zlib

import keras
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from keras_bayestune import BayesTuneSGLD, SparseDelta, SparseMask, document_file
from keras_bayestune.callbacks import backup, run_state
from keras_bayestune.deltas import file as delta_file
from keras_bayestune.deltas.shira import TorchLinear, load_shira, save_shira
from keras_bayestune.masks import file as mask_file
from keras_bayestune.optimizers.state import RunState
from keras_bayestune.uncertainty import DeltaPosterior
from keras_bayestune.uncertainty import file as posterior_file

MOST_BYTES = 64 << 20  # that a reader may allocate for a file of some kB
SECONDS = float(os.environ.get("KERAS_BAYESTUNE_FUZZ_SECONDS", "600"))

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400]),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(-1, 2**62), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
ARRAYS = st.builds(
    lambda dtype, shape, fill: np.full(shape, fill).astype(dtype),
    st.sampled_from(["int8", "int32", "int64", "uint8", "float16", "float32", "bool"]),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(-2, 200),
)
RAW = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 4), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)


def garbled(data, edits):
    for where, kind, new in edits:
        at = int(where * len(data))
        data = [
            data[:at] + new + data[at + len(new) :],
            data[:at] + new + data[at:],
            data[:at],
            data[:at] + data[at + len(new) :],
            data[:at] + data[at // 2 : at] + data[at:],
        ][kind]
    return data


def changed(draw, document):
    """A JSON document with something in it replaced, removed or added."""
    if isinstance(document, dict | list) and document and draw(st.integers(0, 5)):
        keys = list(document) if isinstance(document, dict) else range(len(document))
        key = draw(st.sampled_from(list(keys)))
        copy = document.copy()
        if draw(st.integers(0, 4)):
            copy[key] = changed(draw, document[key])
        else:
            del copy[key]
        return copy
    return draw(ODD)


def changed_arrays(draw, arrays):
    """Some array replaced, changed in one place, or left out."""
    arrays = dict(arrays)
    if not arrays or draw(st.booleans()):
        return arrays
    name = draw(st.sampled_from(sorted(arrays)))
    kind = draw(st.integers(0, 2))
    if kind == 0:
        arrays[name] = draw(ARRAYS)
    elif kind == 1:
        del arrays[name]
    elif arrays[name].size:
        copy = arrays[name].copy()
        at = draw(st.integers(0, copy.size - 1))
        copy.reshape(-1).view(np.uint8)[at] ^= draw(st.integers(1, 255))
        arrays[name] = copy
    return arrays


def model():
    keras.utils.clear_session(free_memory=False)
    layers = [keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


class Reader:
    """A file of ours at `path`; its content is changed and signed again."""

    form: document_file.Format

    def keep(self):
        self.whole = self.path.read_bytes()
        self.document, self.arrays = document_file.read(
            self.path, self.form, lambda document, arrays: (document, dict(arrays))
        )

    def write_changed(self, draw):
        document = changed(draw, self.document)
        arrays = changed_arrays(draw, self.arrays)
        document_file.write(self.path, self.form, document, arrays)


class MaskFile(Reader):
    form = mask_file.FORMAT

    def __init__(self, folder):
        self.path = folder / "mask.safetensors"
        rng = np.random.default_rng(0)
        scores = {"a/kernel": rng.normal(size=(20, 30)), "a/bias": rng.normal(size=30)}
        SparseMask.from_scores(scores, "auto", always={"head": (3,)}).save(self.path)
        self.keep()

    def load(self):
        SparseMask.load(self.path)


def new_delta():
    base, tuned = model(), model()
    for variable in tuned.trainable_variables:
        value = np.array(keras.ops.convert_to_numpy(variable))
        value.flat[::3] += 1.0
        variable.assign(value)
    return SparseDelta.from_checkpoints(base, tuned)


def with_other_rows(draw, arrays, name):
    """The arrays with something in the table of a delta changed."""
    rows = changed(draw, json.loads(zlib.decompress(arrays[name].tobytes())))
    packed = delta_file.deflated(json.dumps(rows).encode())
    return {**arrays, name: np.frombuffer(packed, "uint8")}


class DeltaFile(Reader):
    form = delta_file.FORMAT

    def __init__(self, folder):
        self.path = folder / "delta.safetensors"
        new_delta().save(self.path)
        self.keep()

    def write_changed(self, draw):
        if not draw(st.integers(0, 2)):
            return super().write_changed(draw)
        arrays = with_other_rows(draw, self.arrays, "variables")
        arrays = changed_arrays(draw, arrays)
        return document_file.write(self.path, self.form, self.document, arrays)

    def load(self):
        SparseDelta.load(self.path)


class PosteriorFile(Reader):
    form = posterior_file.FORMAT

    def __init__(self, folder):
        self.path = folder / "posterior.safetensors"
        delta = new_delta()
        spread = {
            p: np.ones(len(v.values), "float32") for p, v in delta.variables.items()
        }
        DeltaPosterior([delta, delta], [spread, {}]).save(self.path)
        self.keep()

    def load(self):
        DeltaPosterior.load(self.path)


def progress():
    mask = SparseMask({"a": [0, 5], "b": [1]}, {"a": (3, 2), "b": (4,)})
    scores = {"a": np.ones((3, 2), "float32")}
    result = run_state.Result(mask, scores, scores, 1, {"samples": 3})
    trace = (3, np.ones((3, 2)), np.ones(2))
    return run_state.Progress(1, 3, 6, 3, False, 0, {"samples": 3}, result, trace)


class StateFileOfARun(Reader):
    form = backup.FORMAT

    def __init__(self, folder):
        self.path = folder / "state.safetensors"
        self.model = model()
        optimizer = BayesTuneSGLD(1e-3, warmup_steps=1, burn_in_steps=2, thinning=1)
        self.model.compile(optimizer, "mse")
        optimizer.build(self.model.trainable_variables)
        optimizer.run.attach(
            lambda: run_state.describe(self.model, progress()), can_switch=True
        )
        self.backup = backup.Backup(folder)
        self.backup.save(self.model)
        self.keep()

    def load(self):
        self.backup.restore(self.model)
        document, arrays, _ = self.model.optimizer.run.take()
        run_state.Carried(document, arrays)


class CarriedByAnOptimizer:
    """What Keras's files hold for the callback, as h5py hands it over."""

    def __init__(self, folder):
        self.path = folder / "document"
        self.document, self.arrays = run_state.describe(model(), progress())
        self.whole = json.dumps(self.document, default=str).encode()
        self.path.write_bytes(self.whole)
        self.kept = self.arrays

    def write_changed(self, draw):
        text = json.dumps(changed(draw, json.loads(self.whole)))
        self.path.write_bytes(text.encode())
        self.kept = changed_arrays(draw, self.arrays)

    def load(self):
        document = np.frombuffer(self.path.read_bytes(), "uint8")
        store = {"run_document": document}
        store |= {f"run_{name}": array for name, array in self.kept.items()}
        _, run = RunState().split(store)
        run_state.Carried(*run)


class ShiraFolder:
    def __init__(self, folder):
        self.folder = folder / "shira"
        self.base, tuned = model(), model()
        kernel = np.array(self.base.get_weights()[0])
        kernel[1, 2] += 1.0
        tuned.set_weights([kernel, *self.base.get_weights()[1:]])
        delta = SparseDelta.from_checkpoints(self.base, tuned)
        kernel = self.base.weights[0].path
        self.modules = {kernel: TorchLinear("a")}
        delta = delta.without([p for p in delta.variables if p != kernel])
        save_shira(delta, self.folder, self.modules)
        self.path = self.folder / "adapter_model.safetensors"
        self.whole = self.path.read_bytes()
        self.tensors = safetensors.numpy.load(self.whole)
        self.config = json.loads((self.folder / "adapter_config.json").read_text())

    def write_changed(self, draw):
        config = json.dumps(changed(draw, self.config))
        (self.folder / "adapter_config.json").write_text(config)
        tensors = changed_arrays(draw, self.tensors)
        self.path.write_bytes(safetensors.numpy.save(tensors))

    def load(self):
        load_shira(self.folder, self.base, self.modules)


READERS = [
    MaskFile,
    DeltaFile,
    PosteriorFile,
    StateFileOfARun,
    CarriedByAnOptimizer,
    ShiraFolder,
]


def fuzz(reader, examples, start):
    """Feed `examples` inputs; how many were refused, and what one allocated at most."""
    refused = peak = 0

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data):
        nonlocal refused, peak
        if data.draw(st.booleans()):
            reader.path.write_bytes(garbled(reader.whole, data.draw(RAW)))
        else:
            reader.write_changed(data.draw)
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            reader.load()
        except ValueError as error:
            assert str(error)
            refused += 1
        # Of the reader alone: hypothesis keeps what it has drawn.
        peak = max(peak, tracemalloc.get_traced_memory()[1] - before)

    check()
    return refused, peak


@pytest.fixture
def reader(request, tmp_path):
    reader = request.param(tmp_path)
    reader.load()  # as it was written
    return reader


@pytest.mark.parametrize("reader", READERS, indirect=True, ids=lambda r: r.__name__)
def test_some_inputs(reader):
    refused, _ = fuzz(reader, 60, 0)
    assert refused > 10


@pytest.mark.long
@pytest.mark.parametrize("reader", READERS, indirect=True, ids=lambda r: r.__name__)
def test_ten_minutes(reader):
    tried = refused = peak = 0
    end = time.monotonic() + SECONDS / len(READERS)
    tracemalloc.start()
    while time.monotonic() < end:
        more, most = fuzz(reader, 500, 1 + tried)
        refused, peak, tried = refused + more, max(peak, most), tried + 500
    tracemalloc.stop()
    print(f"{type(reader).__name__}: {tried} inputs, {refused} refused, peak {peak}")
    assert peak < MOST_BYTES
