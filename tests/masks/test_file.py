import numpy as np
import pytest

from keras_bayestune import document_file
from keras_bayestune.masks import SparseMask
from keras_bayestune.masks import file as mask_file


@pytest.fixture
def mask():
    rng = np.random.default_rng(0)
    scores = {"a/kernel": rng.normal(size=(20, 30)), "a/bias": rng.normal(size=30)}
    return SparseMask.from_scores(scores, "auto", always={"head/bias": (3,)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mask.safetensors"


def test_round_trip(mask, path):
    mask.save(path)
    loaded = SparseMask.load(str(path))
    assert loaded == mask
    assert list(loaded.shapes) == list(mask.shapes)
    assert loaded.mean_scores == mask.mean_scores
    assert loaded.candidates == mask.candidates != ()
    assert loaded.always == mask.always == ("head/bias",)
    for name, flat_indices in mask.indices.items():
        assert loaded.indices[name].dtype == flat_indices.dtype


def test_round_trip_of_odd_masks(path):
    for mask in (
        SparseMask({"a": []}, {"a": (0, 3)}),
        SparseMask({"a": [0]}, {"a": ()}),
        SparseMask({"ä/\u2603 \"'": [2**31, 2**40]}, {"ä/\u2603 \"'": (2**41,)}),
    ):
        mask.save(path)
        assert SparseMask.load(path) == mask


def hostile(path, arrays=None, **changes):
    """A well-formed file with a true digest, apart from what is given."""
    arrays = {"a": np.array([0, 5], np.int32)} if arrays is None else arrays
    fields = {"shapes": {"a": [6]}, "always": [], "mean_scores": {}, "candidates": []}
    document_file.write(path, mask_file.FORMAT, {**fields, **changes}, arrays)


def test_the_file_that_the_hostile_ones_start_from_is_good(path):
    hostile(path)
    assert SparseMask.load(path) == SparseMask({"a": [0, 5]}, {"a": (6,)})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"arrays": {"a": np.array([0, 6], np.int32)}}, "from 0 to 5"),
        ({"arrays": {"a": np.array([-1, 5], np.int64)}}, "from 0 to 5"),
        ({"arrays": {"a": np.array([5, 0], np.int32)}}, "must ascend"),
        ({"arrays": {"a": np.array([5, 5], np.int32)}}, "must ascend"),
        ({"arrays": {"a": np.array([[0, 5]], np.int32)}}, "must be flat"),
        ({"arrays": {"a": np.array([], np.float32)}}, "'a' are float32, expected in"),
        ({"arrays": {"a": np.array([0, 5], np.uint8)}}, "'a' are uint8, expected in"),
        ({"arrays": {"b": np.array([0, 5], np.int32)}}, r"Only in one .*\['a', 'b'\]"),
        ({"arrays": {}}, r"Only in one of them: \['a'\]"),
        ({"shapes": {"a": [5]}}, "from 0 to 4"),
        ({"shapes": {"a": [-6]}}, "integers from 0 expected"),
        ({"shapes": {"a": [6.0]}}, "integers from 0 expected"),
        ({"shapes": {"a": [2**62, 4]}}, "more scalars than an index can reach"),
        ({"shapes": {"a": 6}}, "not iterable"),
        ({"shapes": {"a": [10**4000] * 50}}, "integers from 0 expected"),
        ({"always": ["a"]}, "all of its 6 scalars must be"),
        ({"always": ["b"]}, "not in `shapes`"),
        ({"always": [["a"]]}, "unhashable"),
        ({"mean_scores": {"a": 10**400}}, "too large"),
        ({"mean_scores": {"a": None}}, "must be finite"),
        ({"mean_scores": {"a": float("nan")}}, "must be finite"),
        ({"mean_scores": {"a": float("inf")}}, "must be finite"),
        ({"candidates": [2.0]}, "must be fractions"),
        ({"candidates": [None]}, "must be fractions"),
    ],
)
def test_hostile_files(path, arguments, match):
    hostile(path, **arguments)
    with pytest.raises(ValueError, match=match) as error:
        SparseMask.load(path)
    assert "mask.safetensors' is not a usable mask file" in str(error.value)
