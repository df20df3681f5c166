"""The wrapper passes calls through, marks weights, and is saved with the model."""

import keras
import numpy as np
import pytest

from keras_bayestune import LaplacePrior, WithPrior
from keras_bayestune.priors import assign_priors, is_marked, prior_of

_array = keras.ops.convert_to_numpy
PRIOR, OTHER = LaplacePrior(0.2, 30.0), LaplacePrior(0.4, 5.0)


def _priors(model, exclude=()):
    variables = model.trainable_variables
    paths = [v.path for v in variables]
    assigned = assign_priors(variables, paths, OTHER, exclude)
    return dict(zip(paths, assigned, strict=True))


def test_passes_calls_through():
    inner = keras.layers.Dense(3)
    x = np.random.rand(2, 4).astype("float32")
    wrapped = PRIOR.wrap(inner)
    np.testing.assert_array_equal(_array(wrapped(x)), _array(inner(x)))
    assert wrapped.compute_output_shape((None, 4)) == (None, 3)
    assert isinstance(wrapped, WithPrior)


def test_training_argument_and_mask_reach_the_wrapped_layer():
    x = np.ones((64, 32), "float32")
    dropout = WithPrior(keras.layers.Dropout(0.5), PRIOR)
    assert _array(dropout(x, training=True)).min() == 0.0
    assert _array(dropout(x, training=False)).min() == 1.0
    tokens = keras.Input((5,), dtype="int32")
    embedded = keras.layers.Embedding(7, 3, mask_zero=True)(tokens)
    assert WithPrior(keras.layers.LSTM(2), PRIOR).compute_mask(embedded, None) is None


@pytest.mark.parametrize("built_first", [True, False])
def test_innermost_wrapper_wins(built_first):
    head = keras.layers.Dense(2, name="head")
    body = keras.layers.Dense(4, name="body")
    if built_first:
        head.build((None, 4))
        body.build((None, 3))
    model = keras.Sequential(
        [keras.Input((3,)), WithPrior(body, OTHER), WithPrior(head, None)]
    )
    whole = WithPrior(model, PRIOR)
    whole(np.zeros((1, 3), "float32"))
    assert [prior_of(v) for v in body.weights] == [OTHER, OTHER]
    assert [prior_of(v) for v in head.weights] == [None, None]
    assert all(is_marked(v) for v in head.weights)


def test_only_marked_weights_carry_a_prior():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            PRIOR.wrap(keras.layers.Dense(4, name="body")),
            keras.layers.Dense(2, name="head"),
        ]
    )
    priors = _priors(model)
    assert [p for path, p in priors.items() if "body" in path] == [PRIOR, PRIOR]
    assert [p for path, p in priors.items() if "head" in path] == [None, None]


def test_none_takes_a_part_out_of_the_default():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="body"),
            WithPrior(keras.layers.Dense(2, name="head"), None),
        ]
    )
    priors = _priors(model)
    assert [p for path, p in priors.items() if "body" in path] == [OTHER, OTHER]
    assert [p for path, p in priors.items() if "head" in path] == [None, None]


def test_exclude_matches_paths():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="body")])
    assert list(_priors(model, ["bias$"]).values()) == [OTHER, None]


def test_exclude_that_matches_nothing():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="body")])
    with pytest.raises(ValueError, match="'logits' in `exclude` matches none of the 2"):
        _priors(model, ["body", "logits"])


def test_nothing_left_under_a_prior():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="body")])
    with pytest.raises(ValueError, match="None of the 2 trainable variables carries"):
        _priors(model, ["body"])


@pytest.mark.parametrize("prior", [PRIOR, None])
def test_saved_and_loaded_with_the_model(prior, tmp_path):
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="body")])
    model = keras.Sequential(
        [keras.Input((3,)), WithPrior(inner, prior), keras.layers.Dense(2)]
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.random.rand(2, 3).astype("float32")
    np.testing.assert_array_equal(_array(loaded(x)), _array(model(x)))
    body = loaded.layers[0].layer.weights
    assert [prior_of(v) for v in body] == [prior, prior]
    assert all(is_marked(v) for v in body)


def test_wraps_a_functional_model_with_several_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    merged = keras.layers.Dense(4)(keras.layers.Concatenate()([a, b]))
    wrapped = WithPrior(keras.Model({"a": a, "b": b}, merged), PRIOR)
    data = {"a": np.ones((1, 3), "float32"), "b": np.ones((1, 2), "float32")}
    assert wrapped(data).shape == (1, 4)
    outer = keras.Model({"a": a, "b": b}, wrapped({"a": a, "b": b}))
    assert all(prior_of(v) == PRIOR for v in outer.trainable_variables)


@pytest.mark.parametrize("layer", [None, "dense", LaplacePrior])
def test_bad_layer(layer):
    with pytest.raises(TypeError, match="`layer` of WithPrior must be a Keras layer"):
        WithPrior(layer, PRIOR)


@pytest.mark.parametrize("prior", ["laplace", 0.01, keras.regularizers.L1(0.1)])
def test_bad_prior(prior):
    with pytest.raises(TypeError, match="must be a LaplacePrior or None"):
        WithPrior(keras.layers.Dense(2), prior)


def test_weights_of_the_bare_model(tmp_path):
    """Not by a `.weights.h5` file, whose groups are those of the nesting."""
    layers = keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="a")
    bare = keras.Sequential([keras.Input((2,)), layers[0]])
    wrapped = keras.Sequential([keras.Input((2,)), PRIOR.wrap(layers[1])])
    bare.save_weights(tmp_path / "bare.weights.h5")
    with pytest.raises(ValueError, match="expected|variables"):
        wrapped.load_weights(tmp_path / "bare.weights.h5")
    wrapped.set_weights(bare.get_weights())
    for one, other in zip(bare.get_weights(), wrapped.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
