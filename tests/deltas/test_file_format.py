import json
import random
import tracemalloc
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

from keras_bayestune import document_file
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.deltas.file import (
    FORMAT,
    deflated,
    from_document,
    to_document,
)
from keras_bayestune.deltas.variable import VariableDelta

GOLDEN = Path(__file__).with_name("golden.safetensors")


def golden_variables():
    """One variable of each kind, with values and indices at the corners."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(70, 100)).astype("float32")
    flat_indices = np.array([0, 254, 255, 511, 6999])
    values = np.array([np.nan, -0.0, np.inf, 1e-45, 0.1], "float32")
    half = np.array([1.5, -2.25], "float16")
    return {
        "a/kernel": VariableDelta.sparse(wide, flat_indices, values),
        "a/bias": VariableDelta.sparse(wide[0], np.arange(100), wide[1]),
        "b/kernel": VariableDelta.sparse(wide, np.arange(0), np.empty(0, "float32")),
        "b/scale": VariableDelta.sparse(half, np.array([1]), half[:1]),
        "c/kernel": VariableDelta.whole(wide[:2, :3]),
        "c/empty": VariableDelta.whole(np.empty((0, 3), "float32")),
        "d/step": VariableDelta.whole(np.array(3.0, "float64")),
        "e/free": VariableDelta.free((5, 7), "bfloat16"),
    }


METADATA = {"task": "rte", "metrics": {"accuracy": 0.7}, "fraction": 0.005}


def same(one, other):
    assert one.keys() == other.keys()
    for path, first in one.items():
        second = other[path]
        for field in ("shape", "dtype", "checksum", "is_whole", "is_free"):
            assert getattr(first, field) == getattr(second, field), (path, field)
        assert first.values.dtype == second.values.dtype
        assert first.values.tobytes() == second.values.tobytes()
        assert first.flat_indices.dtype == second.flat_indices.dtype
        np.testing.assert_array_equal(first.flat_indices, second.flat_indices)
        if not first.is_whole and len(first.values):
            assert first.base_checksum == second.base_checksum


@pytest.fixture
def path(tmp_path):
    """A file with one variable of each kind."""
    SparseDelta(golden_variables(), METADATA).save(tmp_path / "d.safetensors")
    return tmp_path / "d.safetensors"


def test_round_trip(path):
    delta = SparseDelta.load(path)
    same(delta.variables, golden_variables())
    assert delta.metadata == METADATA
    assert path.stat().st_size == delta.nbytes


def test_a_file_of_another_backend_and_time(path):
    """Written once, on JAX: the format of version 1 stays readable, bit for bit."""
    delta = SparseDelta.load(GOLDEN)
    same(delta.variables, golden_variables())
    assert delta.metadata == METADATA
    assert delta.fingerprint == "ce0e0577bd274156"
    written, here = (
        dict(safetensors.deserialize(file.read_bytes())) for file in (GOLDEN, path)
    )
    # The same text may be deflated to other bytes by another build of zlib.
    for tensors in (written, here):
        tensors["variables"] = zlib.decompress(tensors["variables"]["data"])
    assert written == here


def test_any_safetensors_reader_can_open_it(path):
    variables = golden_variables() | {"b/scale": wide_only()}
    SparseDelta(variables, METADATA).save(path)
    tensors = load_file(path)
    names = {"indices", "variables", "values.float32", "values.float64"}
    assert set(tensors) == names
    rows = json.loads(zlib.decompress(tensors["variables"].tobytes()))
    assert [row["path"] for row in rows] == list(golden_variables())
    assert tensors["values.float32"].shape == (5 + 100 + 6,)
    with safetensors.safe_open(path, "numpy") as file:
        header = file.metadata()
    assert header["format"] == "keras_bayestune.delta"
    assert header["version"] == "1"
    document = json.loads(header["document"])
    assert document["backend"] == keras.config.backend()
    assert document["keras"] == keras.__version__
    assert document["selected"] == 5 + 100 + 6 + 1
    assert document["scalars"] == 7000 + 100 + 7000 + 2 + 6 + 0 + 1 + 35
    assert document["metadata"] == METADATA


def wide_only():
    return VariableDelta.free((2,), "float16")


@pytest.mark.parametrize(("dtype", "most"), [("float32", 6.0), ("bfloat16", 4.0)])
def test_bytes_per_selected_scalar(dtype, most):
    """Half a percent of a million scalars, the head of the file included."""
    rng = np.random.default_rng(0)
    variables = {}
    for layer in range(20):
        for name, size in (("kernel", 50_000), ("bias", 100)):
            base = rng.normal(size=size).astype("float32")
            chosen = np.sort(rng.choice(size, size // 200, replace=False))
            path = f"transformer_layer_{layer}/feedforward_intermediate_dense/{name}"
            values = rng.random(len(chosen)).astype("float32")
            variables[path] = VariableDelta.sparse(base, chosen, values)
    delta = SparseDelta(variables, METADATA).astype(dtype)
    assert delta.count == 5_000
    assert delta.nbytes / delta.count <= most


# What load refuses.


def forge(path, change, **others):
    """A file whose document and table are changed, with a digest that is right.

    `change` gets the document with the table under "variables".
    """
    document, arrays = to_document(golden_variables(), {})
    document["variables"] = json.loads(zlib.decompress(arrays["variables"].tobytes()))
    change(document)
    packed = zlib.compress(json.dumps(document.pop("variables", 0)).encode())
    arrays["variables"] = np.frombuffer(packed, "uint8")
    document_file.write(path, FORMAT, document, {**arrays, **others})


def forge_table(path, packed):
    document, _ = to_document(golden_variables(), {})
    table = {"variables": np.frombuffer(packed, "uint8")}
    document_file.write(path, FORMAT, document, table)


def mutants(data, count, seed):
    """Files with something wrong: flips, cuts, insertions, claimed lengths."""
    rng = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        where = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            mutant[where] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutant[where] = rng.randrange(256)
        elif kind == 2:
            del mutant[where:]
        elif kind == 3:
            mutant[where:where] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 4:
            del mutant[where : where + rng.randrange(1, 9)]
        else:
            length = rng.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64)])
            mutant[:8] = length.to_bytes(8, "little")
        if bytes(mutant) != data:
            yield bytes(mutant)


HOSTILE = [-1, 0, 1, 2, 3, 255, 2**31, 2**62, 2**63, 2**64, 10**400, 0.5, 1e308]
HOSTILE += ["", "x", "float64", "uint8", "00000000", None, True, [], {}, [1], [2**62]]


def forgeries(path, count, seed):
    """Files with a right digest whose document is not as `save` would write it."""
    rng = random.Random(seed)

    def change(document):
        rows = document["variables"]
        row = rng.choice(rows)
        kind = rng.randrange(6)
        if kind == 0:
            row[rng.choice(list(row))] = rng.choice(HOSTILE)
        elif kind == 1:
            del row[rng.choice(list(row))]
        elif kind == 2:
            row["shape"] = [rng.choice(HOSTILE[:11]) for _ in range(rng.randrange(40))]
        elif kind == 3:
            rows.insert(rng.randrange(len(rows)), rng.choice([row, *HOSTILE]))
        elif kind == 4:
            rng.shuffle(rows)
        else:
            document[rng.choice(list(document))] = rng.choice(HOSTILE)

    for _ in range(count):
        forge(path, change)
        yield


REFUSED = "is not a usable delta file"


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=pytest.mark.long)], ids=str
)
def test_mutated_files(count, path):
    tried = 0
    for mutant in mutants(path.read_bytes(), count, seed=count):
        path.write_bytes(mutant)
        with pytest.raises(ValueError, match=REFUSED):
            SparseDelta.load(path)
        tried += 1
    assert tried > 0.9 * count


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=pytest.mark.long)], ids=str
)
def test_forged_files(count, path):
    """A right digest proves nothing: every claim is checked before it is used."""
    refused = 0
    tracemalloc.start()
    for _ in forgeries(path, count, seed=count):
        try:
            loaded = SparseDelta.load(path)
        except ValueError as error:
            assert REFUSED in str(error)
            refused += 1
        else:
            for delta in loaded.variables.values():
                assert len(delta.values) == len(delta.flat_indices) <= delta.size
                assert (np.diff(delta.flat_indices) > 0).all()
                assert (
                    len(delta.flat_indices) == 0 or delta.flat_indices[-1] < delta.size
                )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 0.4 * count
    assert peak < 4_000_000


@pytest.mark.parametrize(
    "packed",
    [
        zlib.compress(b"[" + b"0" * 50_000_000 + b"]", 9),
        zlib.compress(b"[]") + b"x",
        zlib.compress(b"[]")[:-1],
        b"[]",
        zlib.compress(b"[" * 100_000),
    ],
    ids=["bomb", "more", "less", "plain", "deep"],
)
def test_tables_that_do_not_inflate(packed, path):
    forge_table(path, packed)
    tracemalloc.start()
    with pytest.raises(ValueError, match="Its table of variables"):
        SparseDelta.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("junk", ["[]", "{}", '{"path":"x"}'])
def test_memory_of_a_table_of_junk(junk, path):
    """Small objects, behind noise that makes the share of the text look harmless."""
    noise = np.random.default_rng(0).bytes(100_000).hex()
    text = json.dumps([noise]) + "," + ",".join([junk] * (6_000_000 // len(junk)))
    forge_table(path, zlib.compress(f"[{text}]".encode(), 9))
    tracemalloc.start()
    with pytest.raises(ValueError, match=REFUSED):
        SparseDelta.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * path.stat().st_size


def test_a_table_that_deflates_too_well_is_stored():
    text = b"x" * 10_000_000
    assert zlib.decompress(deflated(text)) == text
    assert len(deflated(text)) > 9_000_000
    variables = {
        f"{n:06}/kernel": VariableDelta.free((1,), "float32") for n in range(9)
    }
    assert from_document(*to_document(variables, {}))[0].keys() == variables.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].update(count=4), "indices in 'a/kernel' do not fit"),
        (lambda rows: rows[0].update(shape=[3]), "A length is 5, not in 0..3"),
        (lambda rows: rows[0].update(shape=[6999]), "indices in 'a/kernel' do not"),
        (lambda rows: rows[0].update(shape=[2**62, 4]), "A length is 184"),
        (lambda rows: rows[0].update(shape=[1] * 33), "shape of 'a/kernel' is not a l"),
        (lambda rows: rows[0].update(bytes=99), "A length is 99, not in"),
        (lambda rows: rows[0].update(bytes=4), "belong to no variable|do not fit"),
        (lambda rows: rows[0].update(width=8), "must be 1, 2 or 4"),
        (lambda rows: rows[0].update(dtype="int32"), "dtype of 'a/kernel' is unknown"),
        (lambda rows: rows[0].update(dtype=[]), "dtype of 'a/kernel' is unknown"),
        (lambda rows: rows[0].update(checksum="12"), "not 8 hexadecimal digits"),
        (lambda rows: rows[0].pop("checksum"), "has values, but no checksum"),
        (lambda rows: rows[4].update(shape=[2, 4]), "stored whole, but not all of it"),
        (lambda rows: rows[0].update(path="a/bias"), "'a/bias' is missing or repeated"),
        (lambda rows: rows[0].pop("path"), "path None is missing"),
        (lambda rows: rows.pop(4), "belong to no variable|claims more values"),
        (lambda rows: rows.clear(), "belong to no variable"),
    ],
)
def test_inconsistent_claims(change, message, path):
    forge(path, lambda document: change(document["variables"]))
    with pytest.raises(ValueError, match=message):
        SparseDelta.load(path)


def test_what_is_consistent_without_a_row(path):
    """The last one is a variable that the delta leaves alone."""
    forge(path, lambda document: document["variables"].pop())
    assert [*SparseDelta.load(path).variables] == [*golden_variables()][:-1]


def test_arrays_of_nothing(path):
    forge(path, lambda _: None, more=np.zeros(1))
    with pytest.raises(ValueError, match=r"It holds arrays .*\['more'\]"):
        SparseDelta.load(path)
