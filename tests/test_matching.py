import keras
import pytest

from keras_bayestune.matching import match_paths, saved_paths
from keras_bayestune.paths import variable_paths


def chain(*names, shapes=None):
    """Paths and shapes of Dense layers of one width, as Keras would name them."""
    shapes = shapes or [(3, 3)] * len(names)
    return {
        f"{name}/{leaf}": shape if leaf == "kernel" else shape[1:]
        for name, shape in zip(names, shapes, strict=True)
        for leaf in ("kernel", "bias")
    }


def layers_of(mapping):
    return {
        saved.rsplit("/", 1)[0]: here.rsplit("/", 1)[0]
        for saved, here in mapping.items()
    }


# Rule 1: identical paths.


def test_identical():
    model = chain("dense", "dense_1")
    assert match_paths(model, model) == {path: path for path in model}


def test_identical_wins_over_rank():
    saved = chain("dense_1", "dense")
    assert layers_of(match_paths(saved, chain("dense", "dense_1"))) == {
        "dense_1": "dense_1",
        "dense": "dense",
    }


def test_part_of_a_model_with_its_own_names():
    saved = chain("query", "key")
    assert match_paths(saved, chain("query", "key", "value")) == {p: p for p in saved}


def test_part_of_a_model_with_explicit_numbers():
    # `layer_0` shows that the numbers are the author's: they do not shift.
    saved = chain("layer_1")
    assert match_paths(saved, chain("layer_0", "layer_1")) == {p: p for p in saved}


def test_part_of_a_model_with_a_sibling_of_another_shape():
    saved = chain("dense")
    present = chain("dense", "dense_1", shapes=[(3, 3), (3, 2)])
    assert match_paths(saved, present) == {path: path for path in saved}


def test_lists_work_as_shapes():
    assert match_paths({"a/kernel": [2, 3]}, {"a/kernel": (2, 3)}) == {
        "a/kernel": "a/kernel"
    }


# Rule 2: shared leading components.


@pytest.mark.parametrize(
    ("saved_prefix", "prefix"),
    [("bert/", ""), ("", "bert/"), ("a/b/", "c/"), ("model/", "model_1/")],
)
def test_prefix_is_stripped(saved_prefix, prefix):
    layers = ["query", "value"]
    saved = chain(*(saved_prefix + name for name in layers))
    present = chain(*(prefix + name for name in layers))
    assert layers_of(match_paths(saved, present)) == {
        saved_prefix + name: prefix + name for name in layers
    }


def test_another_name_of_a_model_with_a_weight_of_its_own():
    saved, present = (
        {f"{name}/scale": (8,), **chain(f"{name}/head")} for name in ("net", "sub_1")
    )
    assert match_paths(saved, present) == dict(zip(saved, present, strict=True))
    layers = {"query/kernel": (8,)}, {"key/kernel": (8,)}
    with pytest.raises(ValueError, match="Missing in this model: query/kernel"):
        match_paths(*layers)


def test_layer_name_is_never_stripped():
    with pytest.raises(ValueError, match="Missing in this model: query/kernel"):
        match_paths(chain("query"), chain("key"))
    assert layers_of(match_paths(chain("a/query"), chain("b/query"))) == {
        "a/query": "b/query"
    }


# Rule 3: automatic numbers.


def test_renumbered_by_rank_not_by_text():
    mapping = match_paths(
        chain("dense_9", "dense_10", "dense_11"), chain("dense", "dense_1", "dense_2")
    )
    assert layers_of(mapping) == {
        "dense_9": "dense",
        "dense_10": "dense_1",
        "dense_11": "dense_2",
    }


def test_renumbered_in_every_component():
    saved = chain("model_2/block_3/dense_7", "model_2/block_4/dense_9", "model_2/dense")
    present = chain("model/block/dense", "model/block_1/dense_1", "model/dense_2")
    assert layers_of(match_paths(saved, present)) == {
        "model_2/block_3/dense_7": "model/block/dense",
        "model_2/block_4/dense_9": "model/block_1/dense_1",
        "model_2/dense": "model/dense_2",
    }


def test_shifted_overlapping_numbers():
    mapping = match_paths(chain("dense", "dense_1"), chain("dense_1", "dense_2"))
    assert layers_of(mapping) == {"dense": "dense_1", "dense_1": "dense_2"}


def test_explicit_numbers_are_not_renumbered():
    with pytest.raises(ValueError, match="Missing in this model: layer_10/kernel"):
        match_paths(chain("layer_10", "layer_11"), chain("layer_0", "layer_1"))


# What must never match.


def test_one_numbered_layer_does_not_match_its_sibling():
    with pytest.raises(ValueError, match="ambiguous.*dense/kernel beside dense_1/ker"):
        match_paths(chain("dense_1"), chain("dense", "dense_1"))
    with pytest.raises(ValueError, match="1 saved, 2 in this model. Only in this"):
        match_paths(
            {"dense_5/kernel": (3, 3)},
            {"dense/kernel": (3, 3), "dense_1/kernel": (3, 3)},
        )


def test_a_deeper_model_of_equal_widths_does_not_match():
    with pytest.raises(ValueError, match="ambiguous"):
        match_paths(chain("dense", "dense_1"), chain("dense", "dense_1", "dense_2"))
    with pytest.raises(ValueError, match="Only in this model: dense_2/kernel"):
        match_paths(chain("dense_3", "dense_4"), chain("dense", "dense_1", "dense_2"))


def test_fewer_variables():
    with pytest.raises(ValueError, match="4 saved, 2 in this model. Missing in this"):
        match_paths(chain("dense", "dense_1"), chain("dense"))


def test_another_shape():
    with pytest.raises(
        ValueError, match=r"Of another shape: a/kernel \(3, 3\) here \(3, 4\)"
    ):
        match_paths({"a/kernel": (3, 3)}, {"a/kernel": (3, 4)})


def test_nearest_rule_is_reported():
    saved = chain("m/dense_3", "m/dense_4")
    present = chain("dense", "dense_1", shapes=[(3, 3), (3, 2)])
    with pytest.raises(ValueError) as error:
        match_paths(saved, present)
    assert "Missing" not in str(error.value)
    assert "m/dense_4/kernel (3, 3) here (3, 2) (dense_1/kernel)" in str(error.value)


def test_long_lists_are_cut():
    with pytest.raises(ValueError, match="and 15 more. Use a model"):
        match_paths(chain(*(f"layer_{i}" for i in range(10))), {})


def two_models():
    def build():
        inputs = keras.Input((4,))
        x = keras.layers.Dense(4)(inputs)
        x = keras.layers.BatchNormalization()(x)
        block = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(4)])
        return keras.Model(inputs, keras.layers.Dense(4)(block(x)))

    return build(), build()


def test_two_copies_of_a_model_match_in_order():
    first, second = two_models()
    shapes = [{v.path: v.shape for v in m.variables} for m in (first, second)]
    assert set(shapes[0]) != set(shapes[1])
    paths = [variable_paths(model.variables) for model in (first, second)]
    expected = dict(zip(*paths, strict=True))
    assert match_paths(*shapes) == expected
    # Without its first layer the ranks of the others shift: no match at all.
    part = {v.path: v.shape for v in second.variables[2:]}
    with pytest.raises(ValueError, match="do not match"):
        match_paths(shapes[0], part)
    with pytest.raises(ValueError, match="do not match"):
        match_paths(part, shapes[0])


def test_twins_match_in_order_and_their_part_is_ambiguous():
    twins = chain("fc1", "fc1#2")
    assert match_paths(twins, twins) == {path: path for path in twins}
    prefixed = chain("net/fc1", "net/fc1#2")
    assert layers_of(match_paths(prefixed, twins)) == {
        "net/fc1": "fc1",
        "net/fc1#2": "fc1#2",
    }
    with pytest.raises(ValueError, match="ambiguous.*fc1#2/kernel beside fc1/kernel"):
        match_paths(chain("fc1"), twins)


def test_a_twin_alone_is_its_tower():
    # One tower is frozen: among the trainable variables the other has no number.
    assert layers_of(match_paths(chain("fc1#2", "head"), chain("fc1", "head"))) == {
        "fc1#2": "fc1",
        "head": "head",
    }


# Rule 4: in order, where Keras drops components on loading.

NET = {"net/scale": (), **chain("net/block/dense", "net/block/dense_1", "net/head")}


@pytest.mark.parametrize(
    "loaded",
    [
        {"net_1/scale": (), **chain("dense_4", "dense_5", "head")},
        {"net/scale": (), **chain("block_2/dense_9", "block_2/dense_10", "head")},
        {"net_1/scale": (), **chain("net_1/dense_1", "net_1/dense_2", "head")},
    ],
)
def test_dropped_components(loaded):
    assert match_paths(NET, loaded) == dict(zip(NET, loaded, strict=True))
    assert match_paths(loaded, NET) == dict(zip(loaded, NET, strict=True))


@pytest.mark.parametrize(
    "other",
    [
        {"net_1/scale": (), **chain("dense_5", "dense_4", "head")},
        {"net_1/scale": (), **chain("dense_4", "head", "dense_5")},
        {"net_1/scale": (), **chain("conv_4", "conv_5", "head")},
        {"net_1/shift": (), **chain("dense_4", "dense_5", "head")},
        {"net_1/scale": (), **chain("other/dense_4", "other/dense_5", "head")},
        {"net_1/scale": (1,), **chain("dense_4", "dense_5", "head")},
        {"net_1/scale": (), **chain("dense_4", "dense_5")},
    ],
    ids=["numbers", "order", "layer", "variable", "parent", "shape", "fewer"],
)
def test_not_what_keras_would_call_it(other):
    for pair in [(NET, other), (other, NET)]:
        with pytest.raises(ValueError, match="do not match"):
            match_paths(*pair)


def test_two_towers_are_not_exchanged():
    saved = {"net/scale": (), **chain("net/text/dense", "net/image/dense")}
    with pytest.raises(ValueError, match="do not match"):
        match_paths(saved, {"net_1/scale": (), **chain("image/dense", "text/dense")})


def test_a_mask_that_lost_the_order_does_not_match():
    # `dense` is taken whole and was added last; by order it would be `dense_5`.
    saved = chain("net/dense_1", "net/dense_2", "net/dense") | {"net/scale": ()}
    present = chain("dense_3", "dense_4", "dense_5") | {"net_1/scale": ()}
    with pytest.raises(ValueError, match="do not match"):
        match_paths(saved, present)


def layer(name, units=2):
    built = keras.layers.Dense(units, name=name)
    built.build((None, 2))
    return built


def test_paths_that_patterns_were_written_for():
    layers = [layer("a"), layer("head")]
    variables = [variable for one in layers for variable in one.variables]
    saved = chain("net/a", "net/head", shapes=[(2, 2), (2, 2)])
    assert saved_paths(saved, variables) == list(saved)
    own = variable_paths(variables)
    assert saved_paths({}, variables) == own
    assert saved_paths(chain("other"), variables) == own
