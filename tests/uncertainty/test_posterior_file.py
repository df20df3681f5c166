import numpy as np
import pytest

from keras_bayestune import document_file
from keras_bayestune.uncertainty import DeltaPosterior, file

X = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")


@pytest.fixture
def posterior(make_tuned):
    tuned = make_tuned(count=2)
    noise = {
        path: np.full(len(stored.values), 0.2, "float32")
        for path, stored in tuned.deltas[0].variables.items()
    }
    return tuned.model, DeltaPosterior(
        tuned.deltas, [noise, {}], temperature=1.3, metadata={"task": "x"}
    )


def test_what_is_saved_comes_back(posterior, tmp_path):
    model, saved = posterior
    saved.save(tmp_path / "p.safetensors")
    loaded = DeltaPosterior.load(tmp_path / "p.safetensors")
    assert loaded.temperature == 1.3 and loaded.metadata == {"task": "x"}
    assert loaded.outputs == "logits" and loaded.noise_variance == 0.0
    assert saved.sample(4, seed=2) == loaded.sample(4, seed=2)
    np.testing.assert_array_equal(
        saved.predict(model, X, verbose=0).mean,
        loaded.predict(model, X, verbose=0).mean,
    )
    assert (tmp_path / "p.safetensors").stat().st_size == saved.nbytes
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_regression_and_a_point_come_back(make_tuned, tmp_path):
    tuned = make_tuned(count=1)
    point = DeltaPosterior(tuned.deltas, outputs="values", noise_variance=0.5)
    point.save(tmp_path / "p")
    loaded = DeltaPosterior.load(tmp_path / "p")
    assert (loaded.outputs, loaded.noise_variance) == ("values", 0.5)
    assert loaded.deltas == point.deltas and loaded.deviations == ({},)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, a: a.update({"2.values.float32": np.zeros(1)}), "belongs to no del"),
        (lambda d, a: a.update(x=np.zeros(1)), "'x', which belongs to no delta"),
        (lambda d, a: a.update({"0.x": np.zeros(1)}), r"a delta has not: \['x'\]"),
        (lambda d, a: a.pop("0.values.float32"), "claims more values"),
        (lambda d, a: a.pop("0.deviations"), "deviations do not fit"),
        (lambda d, a: a.update({"0.deviations": np.zeros(3)}), "deviations do not fit"),
        (lambda d, a: d["deviations"][0].append("x"), "variable that its delta lacks"),
        (lambda d, a: d["deviations"].pop(), "shorter than"),
        (lambda d, a: d["deltas"].pop(), "belongs to no delta"),
        (lambda d, a: d["deltas"][0].update(metadata=1), "'metadata' in its document"),
        (lambda d, a: d.update(deltas=[1, 2]), "Its document must have"),
        (lambda d, a: d.update(temperature=-1), "`temperature` must be"),
    ],
)
def test_content_that_does_not_fit(posterior, tmp_path, change, message):
    document, arrays = file.to_document(posterior[1])
    change(document, arrays)
    document_file.write(tmp_path / "p", file.FORMAT, document, arrays)
    with pytest.raises(ValueError, match=f"not a usable posterior file.*{message}"):
        DeltaPosterior.load(tmp_path / "p")


def test_metadata_must_be_json(make_tuned, tmp_path):
    posterior = DeltaPosterior(make_tuned().deltas, metadata={"x": object()})
    with pytest.raises(ValueError, match="must be JSON"):
        posterior.save(tmp_path / "p")
