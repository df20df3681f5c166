import doctest
import importlib

import numpy as np
import pytest

from keras_bayestune.knee import find_knees
from keras_bayestune.masks import SparseMask
from keras_bayestune.plots import plot_scales
from keras_bayestune.plots.scales import scale_curve


def scales(seed=0, head=False):
    """Scales with heavy tails, as posterior means have them."""
    generator = np.random.default_rng(seed)
    scores = {
        "dense/kernel": generator.lognormal(-9, 1.5, size=(60, 50)),
        "dense/bias": generator.lognormal(-8, 1, size=50),
    }
    if head:
        scores["head/kernel"] = generator.lognormal(-2, 1, size=(50, 3))
    return {path: array.astype(np.float32) for path, array in scores.items()}


def pooled(scores):
    """All scores from large to small."""
    return np.sort(np.concatenate([array.ravel() for array in scores.values()]))[::-1]


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_curve_is_the_sorted_scores():
    scores = scales()
    ordered = pooled(scores)
    curve = scale_curve(scores)
    ranks = np.rint(curve.proportions * ordered.size).astype(int)
    assert ranks[0] == 1 and ranks[-1] == ordered.size
    np.testing.assert_array_equal(curve.values, ordered[ranks - 1])
    assert len(ranks) <= 500
    assert curve.selected is None


def test_candidates_are_the_knees_without_a_mask():
    scores = scales()
    curve = scale_curve(scores)
    knees = find_knees(scores)[1]
    assert [mark.proportion for mark in curve.candidates] == pytest.approx(
        knees, abs=0.5 / 3050
    )
    for mark in curve.candidates:
        assert mark.value == pooled(scores)[mark.rank - 1]


def test_candidates_are_those_of_the_mask():
    scores = scales()
    indices = SparseMask.from_scores(scores, 0.02).indices
    shapes = {path: array.shape for path, array in scores.items()}
    mask = SparseMask(indices, shapes, candidates=(0.1, 0.5))
    curve = scale_curve(scores, mask)
    assert [mark.rank for mark in curve.candidates] == [305, 1525]
    assert [mark.value for mark in curve.candidates] == [
        pooled(scores)[304],
        pooled(scores)[1524],
    ]


def test_chosen_is_the_cut_of_the_mask():
    scores = scales()
    mask = SparseMask.from_scores(scores, fraction=0.02)
    chosen = scale_curve(scores, mask).selected
    assert chosen.rank == 61
    assert chosen.proportion == 61 / 3050
    least = min(
        scores[path].ravel()[indices].min()
        for path, indices in mask.indices.items()
        if len(indices)
    )
    assert chosen.value == least


def test_variables_taken_whole_do_not_compete():
    scores = scales(head=True)
    mask = SparseMask.from_scores(scores, fraction=0.02, always=["head/kernel"])
    assert mask.count == 61 + 150
    curve = scale_curve(scores, mask)
    without = scale_curve(scales())
    np.testing.assert_array_equal(curve.values, without.values)
    np.testing.assert_array_equal(curve.proportions, without.proportions)
    assert curve.selected.rank == 61
    # A fresh head has no scores at all in stage 1.
    assert scale_curve(scales(), mask).selected == curve.selected


def test_millions_of_scalars_are_drawn_as_a_few_hundred_points():
    generator = np.random.default_rng(0)
    scores = {"kernel": generator.standard_cauchy(2_000_000).astype(np.float32)}
    curve = scale_curve(scores)
    assert 300 < len(curve.proportions) <= 500


def test_plot_shows_curve_candidates_and_choice():
    scores = scales()
    mask = SparseMask.from_scores(scores, fraction=0.02)
    curve = scale_curve(scores, mask)
    axes = plot_scales(scores, mask)
    line, candidates, vertical, chosen = axes.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), curve.proportions)
    np.testing.assert_array_equal(line.get_ydata(), curve.values)
    marks = curve.candidates
    assert list(candidates.get_xdata()) == [mark.proportion for mark in marks]
    assert list(candidates.get_ydata()) == [mark.value for mark in marks]
    assert set(vertical.get_xdata()) == {curve.selected.proportion}
    assert chosen.get_xdata() == [61 / 3050]
    assert chosen.get_ydata() == [curve.selected.value]
    assert labels(axes)[0] == "sorted scales"
    assert labels(axes)[1].startswith("candidate cut-offs: ")
    assert labels(axes)[2] == "selected p = 2 % (61 scalars)"
    assert axes.get_title() == "Sorted posterior scales"
    assert axes.get_xlabel() == "Fraction of scalars"
    assert axes.get_ylabel() == "Posterior mean scale (units of the weight)"


@pytest.mark.parametrize(
    ("fractions", "text"),
    [
        ((0.01,), "1 %"),
        ((0.01, 0.02, 0.03, 0.04), "1 %, 2 %, 3 %, 4 %"),
        ((0.01, 0.02, 0.03, 0.04, 0.05), "1 %, 2 %, 3 %, 4 %, …"),
    ],
)
def test_few_candidates_are_listed(fractions, text):
    scores = {"kernel": np.arange(1.0, 101.0)}
    mask = SparseMask({"kernel": [99]}, {"kernel": (100,)}, candidates=fractions)
    assert labels(plot_scales(scores, mask))[1] == f"candidate cut-offs: {text}"


def test_scalars_without_a_gradient_are_marked():
    axes = plot_scales(scales(), without_gradient=0.6)
    told = "without a gradient: 60 %\n(such as unused tokens)"
    assert labels(axes)[-1] == told
    (shaded,) = axes.patches
    assert shaded.get_x() == pytest.approx(0.4)
    assert shaded.get_width() == pytest.approx(0.6)
    assert not plot_scales(scales(), without_gradient=0.0).patches
    with pytest.raises(ValueError, match=r"fraction in \[0, 1\]. Received: 1.1"):
        plot_scales(scales(), without_gradient=1.1)


@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0])
def test_ticks_of_logarithmic_axes_are_even(spread):
    scores = np.random.default_rng(0).lognormal(-9, spread, 3000)
    axes = plot_scales({"a": scores})
    axes.figure.canvas.draw()
    assert not any(t.get_text() for t in axes.get_yticklabels(minor=True))
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert len(ticks) >= 3
    if spread > 0.1:
        assert {f"{tick:e}"[0] for tick in ticks} <= {"1", "2", "5"}
    else:
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_log():
    scores = scales()
    axes = plot_scales(scores)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    axes = plot_scales(scores, log=False)
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


def test_scores_of_zero_are_left_out_of_logarithmic_axes():
    scores = {"kernel": np.array([0.0, -1.0, 2.0, 1.0, 0.0])}
    assert plot_scales(scores).get_lines()[0].get_ydata().tolist() == [2, 1]
    linear = plot_scales(scores, log=False).get_lines()[0].get_ydata()
    assert linear.tolist() == [2, 1, 0, 0, -1]


@pytest.mark.parametrize("largest", [0.0, -1.0])
def test_log_without_a_score_above_zero(largest):
    scores = {"kernel": np.array([largest, -2.0])}
    with pytest.raises(ValueError, match="a score above 0.*Pass `log=False`"):
        plot_scales(scores)
    plot_scales(scores, log=False)


@pytest.mark.parametrize("size", [1, 100])
def test_curve_without_a_knee_is_drawn(size):
    axes = plot_scales({"kernel": np.full(size, 1e-4)})
    assert labels(axes) == ["sorted scales"]


def test_scores_must_be_a_mapping():
    with pytest.raises(TypeError, match="mapping {path: array}. Received: ndarray"):
        plot_scales(np.ones(3))


def test_mask_must_be_a_mask():
    with pytest.raises(TypeError, match="must be a SparseMask. Received: float"):
        plot_scales(scales(), 0.005)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_must_be_finite(value):
    with pytest.raises(ValueError, match="(?i)nan|infinite"):
        plot_scales({"kernel": np.array([1.0, value])})


def test_no_scores():
    with pytest.raises(ValueError, match="no scores"):
        plot_scales({})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"dense/kernel": (60, 50)}, r"dense/bias: scores \(50,\), mask missing"),
        ({"a": (2,)}, r"3 variable\(s\).*a: scores missing, mask \(2,\)"),
        (
            {"dense/kernel": (50, 60), "dense/bias": (50,)},
            r"1 variable\(s\).*dense/kernel: scores \(60, 50\), mask \(50, 60\)",
        ),
    ],
)
def test_mask_for_another_model(shapes, message):
    mask = SparseMask({path: [0] for path in shapes}, shapes)
    with pytest.raises(ValueError, match=f"for another model.*{message}"):
        plot_scales(scales(), mask)


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("kind", ["heavy", "few", "zeros", "flat", "one"])
def test_readable(kind, log, check_readable):
    generator = np.random.default_rng(0)
    scores = {
        "heavy": (1e-5 * np.abs(generator.standard_t(1.5, 300_000))).astype("float32"),
        "few": generator.lognormal(-9, 1.5, 12),
        "zeros": np.where(np.arange(1000) < 900, 0, generator.gamma(1, 1e-3, 1000)),
        "flat": np.full(100, 1e-4),
        "one": np.full(1, 1e-4),
    }[kind]
    chosen = np.argsort(scores)[-max(1, scores.size // 50) :]
    mask = SparseMask({"kernel": np.sort(chosen)}, {"kernel": scores.shape})
    check_readable(plot_scales({"kernel": scores}, mask, log=log))


def test_examples():
    module = importlib.import_module(plot_scales.__module__)
    assert doctest.testmod(module).failed == 0
