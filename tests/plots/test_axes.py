import ast
import doctest
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

import keras_bayestune.plots.axes
from keras_bayestune.masks import SparseMask
from keras_bayestune.plots import plot_mask, plot_scales, plot_trace
from keras_bayestune.plots.axes import new_axes, percent

SCORES = {"dense/kernel": np.arange(1.0, 9.0)}
CALLS = {
    "mask": lambda **kwargs: plot_mask(SparseMask.from_scores(SCORES, 0.5), **kwargs),
    "scales": lambda **kwargs: plot_scales(SCORES, **kwargs),
    "trace": lambda **kwargs: plot_trace(np.ones((3, 1)), **kwargs),
}


def test_new_axes():
    axes = new_axes(5, 3)
    assert axes.figure.get_size_inches().tolist() == [5, 3]
    assert axes.figure.number in plt.get_fignums()


@pytest.mark.parametrize("name", CALLS)
def test_plots_draw_on_given_axes(name):
    figure, (left, right) = plt.subplots(1, 2)
    assert CALLS[name](ax=right) is right
    assert not left.has_data()
    assert plt.get_fignums() == [figure.number]


@pytest.mark.parametrize("name", CALLS)
def test_plots_open_one_figure(name):
    axes = CALLS[name]()
    assert plt.get_fignums() == [axes.figure.number]


@pytest.mark.parametrize("name", CALLS)
def test_missing_matplotlib_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib"):
        CALLS[name]()


def test_matplotlib_is_imported_only_when_called(root):
    files = sorted((root / "keras_bayestune" / "plots").glob("*.py"))
    assert len(files) >= 5
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "matplotlib" not in ast.unparse(node), file.name


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1.2345e-7, "1.23e-05 %"),
        (0.005, "0.5 %"),
        (0.12345, "12.3 %"),
        (0.9999, "100 %"),
        (1, "100 %"),
    ],
)
def test_percent(share, text):
    assert percent(share) == text


def test_examples():
    assert doctest.testmod(keras_bayestune.plots.axes).failed == 0
