import doctest
import importlib
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from keras_bayestune.masks import SparseMask
from keras_bayestune.plots import plot_mask
from keras_bayestune.plots.mask import mask_fractions


def mask_of(chosen, shapes, always=()):
    """Mask with the first `selected[path]` scalars of every variable."""
    return SparseMask(
        {path: np.arange(chosen.get(path, 0)) for path in shapes}, shapes, always=always
    )


def small():
    shapes = {
        "model/dense/kernel": (10, 10),
        "model/dense/bias": (10,),
        "model/norm/gamma": (10,),
        "model/head/kernel": (10, 2),
        "model/head/bias": (2,),
    }
    head = ("model/head/kernel", "model/head/bias")
    chosen = {"model/dense/kernel": 5, "model/dense/bias": 1, head[0]: 20, head[1]: 2}
    return mask_of(chosen, shapes, always=head)


def bert(layers=12, width=8):
    """The variables of KerasHub's BertTextClassifier: 201 for 12 layers."""
    shapes = {
        "token_embedding/embeddings": (1000, width),
        "position_embedding/embeddings": (32, width),
        "segment_embedding/embeddings": (2, width),
        "embeddings_layer_norm/gamma": (width,),
        "embeddings_layer_norm/beta": (width,),
    }
    for index in range(layers):
        layer = f"transformer_layer_{index}"
        for name in ("query", "key", "value", "attention_output"):
            shapes[f"{layer}/self_attention_layer/{name}/kernel"] = (width, 2, width)
            shapes[f"{layer}/self_attention_layer/{name}/bias"] = (2, width)
        for name in ("self_attention_layer_norm", "feedforward_layer_norm"):
            shapes[f"{layer}/{name}/gamma"] = (width,)
            shapes[f"{layer}/{name}/beta"] = (width,)
        for name in ("feedforward_intermediate_dense", "feedforward_output_dense"):
            shapes[f"{layer}/{name}/kernel"] = (width, 4 * width)
            shapes[f"{layer}/{name}/bias"] = (width,)
    for name in ("pooled_dense", "logits"):
        shapes[f"{name}/kernel"] = (width, width)
        shapes[f"{name}/bias"] = (width,)
    generator = np.random.default_rng(0)
    chosen = {}
    for path, shape in shapes.items():
        share = min(1, 0.02 * generator.lognormal(0, 1.2))
        chosen[path] = int(share * math.prod(shape))
    head = ("logits/kernel", "logits/bias")
    chosen |= {path: math.prod(shapes[path]) for path in head}
    return mask_of(chosen, shapes, always=head)


def flat(layers):
    """Names without folders, as KerasHub's convolutional backbones have them."""
    shapes = {}
    for index in range(layers):
        shapes[f"stack0_block{index}_expand_convolution/kernel"] = (3, 3, 8, 8)
        shapes[f"stack0_block{index}_expand_convolution/bias"] = (8,)
    return mask_of({path: i % 9 for i, path in enumerate(shapes)}, shapes)


def layer_labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def cell_texts(axes):
    return [text.get_text() for text in axes.texts]


def test_counts_per_layer_and_kind():
    data = mask_fractions(small())
    assert data.layers == ("dense", "norm", "head")
    assert data.kinds == ("kernel", "bias", "gamma")
    assert data.selected.tolist() == [[5, 1, 0], [0, 0, 0], [20, 2, 0]]
    assert data.sizes.tolist() == [[100, 10, 0], [0, 0, 10], [20, 2, 0]]
    assert data.always.tolist() == [[False] * 3, [False] * 3, [True, True, False]]
    np.testing.assert_array_equal(
        data.fractions, [[0.05, 0.1, np.nan], [np.nan, np.nan, 0], [1, 1, np.nan]]
    )


def test_counts_add_up_to_the_mask():
    mask = bert()
    for most_layers in (1, 20, 200):
        data = mask_fractions(mask, most_layers)
        assert data.selected.sum() == mask.count
        assert data.sizes.sum() == mask.size


def test_weights_of_one_kind_in_one_layer_are_counted_together():
    mask = mask_of(
        {"block/a/kernel": 1, "block/b/kernel": 4},
        {"block/a/kernel": (2,), "block/b/kernel": (4,), "head/kernel": (3,)},
        always=["block/b/kernel"],
    )
    data = mask_fractions(mask, most_layers=2)
    assert data.layers == ("block", "head")
    assert data.selected.tolist() == [[5], [0]]
    assert data.sizes.tolist() == [[6], [3]]
    assert not data.always.any()  # block/a competed


@pytest.mark.parametrize(("most_layers", "count"), [(102, 102), (101, 18), (1, 18)])
def test_numbered_blocks_are_the_layers_where_there_are_many(most_layers, count):
    layers = mask_fractions(bert(), most_layers).layers
    assert len(layers) == count
    assert layers[0] == "token_embedding"
    if count == 18:
        assert layers[4:16] == tuple(f"transformer_layer_{i}" for i in range(12))


def test_one_level_is_never_cut():
    assert len(mask_fractions(flat(60), most_layers=1).layers) == 60


def test_variable_without_a_layer():
    assert mask_fractions(mask_of({}, {"kernel": (2,)})).layers == ("(model)",)
    mask = mask_of({}, {"model/scale": (1,), "model/dense/kernel": (2,)})
    assert mask_fractions(mask).layers == ("(model)", "dense")


def test_variable_without_scalars_is_no_weight():
    data = mask_fractions(mask_of({}, {"a/kernel": (0, 3), "b/kernel": (3,)}))
    assert np.isnan(data.fractions[0, 0])
    assert not data.always[0, 0]


def test_small_mask_has_its_shares_written_in():
    axes = plot_mask(small())
    assert cell_texts(axes) == ["5 %", "10 %", "0 %"]
    assert layer_labels(axes) == ["dense", "norm", "head"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "kernel",
        "bias",
        "gamma",
    ]
    assert "28 of 142 scalars (19.7 %)" in axes.get_title()
    assert axes.get_xlabel() == "Kind of weight"
    assert axes.get_ylabel() == "Layer"


def test_cells_lie_under_their_labels():
    axes = plot_mask(small())
    cells = {cell.get_xy(): cell for cell in axes.patches}
    assert set(cells) == {(0, 0), (1, 0), (2, 1), (0, 2), (1, 2)}
    assert axes.get_yticks().tolist() == [0.5, 1.5, 2.5]
    assert axes.yaxis_inverted()
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0.5, 0.5): "5 %", (1.5, 0.5): "10 %", (2.5, 1.5): "0 %"}


def test_cells_without_colour():
    axes = plot_mask(small())
    cells = {cell.get_xy(): cell for cell in axes.patches}
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(legend) == ["always trained", "none selected"]
    assert cells[2, 1].get_facecolor() == to_rgba("0.9")
    assert [cells[xy].get_hatch() for xy in ((0, 2), (1, 2))] == ["////"] * 2
    assert [cells[xy].get_hatch() for xy in ((0, 0), (2, 1))] == [None] * 2


def test_no_legend_without_such_cells():
    assert plot_mask(mask_of({"a/kernel": 1}, {"a/kernel": (4,)})).get_legend() is None


def test_colour_grows_with_the_logarithm_of_the_share():
    shapes = {f"layer_{index}/kernel": (100_000,) for index in range(3)}
    chosen = {f"layer_{index}/kernel": 10**index for index in range(1, 3)}
    axes = plot_mask(mask_of({**chosen, "layer_0/kernel": 1000}, shapes))
    norm = axes.figure.axes[1].get_ylim()
    assert norm == pytest.approx((1e-4, 1e-2))
    colours = [cell.get_facecolor() for cell in axes.patches]
    middle = axes.figure.axes[1]._colorbar.cmap(0.5)
    assert colours[2] == pytest.approx(middle, abs=0.01)


@pytest.mark.parametrize(
    ("chosen", "limits"),
    [
        ((30,), (0.02, 0.05)),
        ((20,), (0.02, 0.05)),
        ((50,), (0.05, 0.1)),
        ((1000,), (0.5, 1)),
        ((1, 1000), (0.001, 1)),
        ((20, 50), (0.02, 0.05)),
    ],
)
def test_colour_bar_ends_at_round_shares(chosen, limits):
    shapes = {f"layer_{index}/kernel": (1000,) for index in range(len(chosen))}
    mask = mask_of(dict(zip(shapes, chosen, strict=True)), shapes)
    bar = plot_mask(mask).figure.axes[1]
    assert bar.get_ylim() == pytest.approx(limits)
    assert len(bar.get_yticks()) >= 2


@pytest.mark.parametrize("chosen", [0, 4])
def test_nothing_to_colour(chosen):
    always = ["a/kernel"] if chosen else []
    axes = plot_mask(mask_of({"a/kernel": chosen}, {"a/kernel": (4,)}, always))
    assert axes.figure.axes == [axes]


def test_bert_is_a_heatmap_of_its_blocks():
    mask = bert()
    assert len(mask.shapes) == 201
    axes = plot_mask(mask)
    assert len(layer_labels(axes)) == 18
    assert cell_texts(axes) == []


def test_labels_are_thinned_where_there_are_too_many():
    axes = plot_mask(flat(200))
    labels = layer_labels(axes)
    assert 50 < len(labels) < 200
    step = 200 // len(labels) + (200 % len(labels) > 0)
    assert labels[1] == f"stack0_block{step}_expand_convolution"
    assert axes.get_yticks()[1] == step + 0.5


@pytest.mark.parametrize(
    ("layer", "label"),
    [
        ("b" * 50, "b" * 50),
        ("b" * 51, "b" * 25 + "…" + "b" * 24),
        ("first/" + "middle/" * 8 + "last", "first/…/last"),
        ("first/" + "x" * 60, "first/" + "x" * 19 + "…" + "x" * 24),
    ],
)
def test_long_names_lose_their_middle(layer, label):
    mask = mask_of({}, {f"{layer}/kernel": (1,), "zz/kernel": (1,)})
    assert layer_labels(plot_mask(mask))[0] == label


@pytest.mark.parametrize(
    "mask",
    [
        small(),
        mask_of({"kernel": 1}, {"kernel": (60, 64)}),
        bert(),
        bert(layers=2),
        flat(40),
        flat(120),
        mask_of(
            {},
            {
                f"encoder/a_layer_with_a_very_long_name_and_number_{layer}/{kind}": (9,)
                for layer in range(3)
                for kind in ("reverse_position_embeddings", "recurrent_kernel", "bias")
            },
        ),
        mask_of({}, {f"layer/kind_{index}": (9,) for index in range(14)}),
    ],
    ids=["small", "one", "bert", "bert2", "flat40", "flat120", "long", "kinds"],
)
def test_readable(mask, check_readable):
    check_readable(plot_mask(mask))


def test_mask_must_be_a_mask():
    with pytest.raises(TypeError, match="must be a SparseMask. Received: dict"):
        plot_mask({"kernel": [1]})


@pytest.mark.parametrize("most_layers", [0, -1])
def test_most_layers(most_layers):
    with pytest.raises(ValueError, match=f"integer >= 1.*={most_layers}"):
        mask_fractions(small(), most_layers)


def test_examples():
    module = importlib.import_module(plot_mask.__module__)
    assert doctest.testmod(module).failed == 0
