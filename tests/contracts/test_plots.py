"""What holds for every plot; a new one is a row."""

import sys

import numpy as np
import pytest

import keras_bayestune as kbt

rng = np.random.default_rng(0)
SCORES = {"a/kernel": rng.gamma(1.0, size=(6, 5)), "a/bias": rng.gamma(1.0, size=5)}
PLOTS = {
    "plot_error_vs_sparsity": ({"full": {0.01: [0.2, 0.3], 0.1: [0.1, 0.2]}},),
    "plot_mask": (kbt.SparseMask.from_scores(SCORES, fraction=0.2),),
    "plot_reliability": (rng.dirichlet([1, 1, 1], 50), rng.integers(0, 3, 50)),
    "plot_scales": (SCORES,),
    "plot_trace": (rng.gamma(1.0, size=(40, 3)),),
}


@pytest.fixture(params=PLOTS)
def draw(request):
    """Draws the plot of this row; no figure is open before or afterwards."""
    import matplotlib.pyplot as plt

    plt.close("all")
    yield lambda **arguments: getattr(kbt, request.param)(
        *PLOTS[request.param], **arguments
    )
    plt.close("all")


def test_every_plot_has_a_row():
    assert PLOTS.keys() == {name for name in kbt.__all__ if name.startswith("plot_")}


def test_makes_one_figure_that_says_what_it_shows(draw):
    import matplotlib.pyplot as plt

    axes = draw()
    assert plt.get_fignums() == [axes.figure.number]
    axes.figure.canvas.draw()
    assert axes.get_title()
    assert axes.get_xlabel() or axes.get_xticklabels()
    assert axes.has_data()


def test_draws_on_the_axes_that_it_is_given(draw):
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2)
    assert draw(ax=right) is right
    assert right.has_data()
    assert not left.has_data()
    assert len(plt.get_fignums()) == 1


def test_says_what_to_install(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw()
