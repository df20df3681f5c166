import matplotlib.pyplot as plt
import numpy as np
import pytest

from keras_bayestune import plot_reliability
from keras_bayestune.diagnostics import expected_calibration_error, reliability


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5, 1.0, 2.0], size=600)
    labels = (probabilities.cumsum(1) > rng.random((600, 1))).argmax(1)
    return probabilities**2 / (probabilities**2).sum(1, keepdims=True), labels


def test_bins_by_hand(predictions):
    p, y = predictions
    found = reliability(p, y, bins=7)
    np.testing.assert_allclose(found.edges, np.arange(8) / 7)
    sure, right = p.max(1), p.argmax(1) == y
    for b in range(7):
        inside = (sure > found.edges[b]) & (sure <= found.edges[b + 1])
        assert found.counts[b] == inside.sum()
        if inside.any():
            assert found.confidence[b] == pytest.approx(sure[inside].mean())
            assert found.accuracy[b] == pytest.approx(right[inside].mean())
        else:
            assert np.isnan(found.confidence[b]) and np.isnan(found.accuracy[b])
    assert found.counts[0] == 0 and found.counts.sum() == 600
    assert found.error == expected_calibration_error(p, y, bins=7)


def test_what_is_drawn(predictions, check_readable):
    axes = plot_reliability(*predictions, bins=10)
    found = reliability(*predictions, bins=10)
    filled = found.counts > 0
    accuracy, share = (c for c in axes.containers if hasattr(c, "patches"))
    heights = [bar.get_height() for bar in accuracy]
    np.testing.assert_allclose(heights, found.accuracy[filled])
    heights = [bar.get_height() for bar in share]
    np.testing.assert_allclose(heights, found.counts[filled] / 600)
    marks = next(line for line in axes.lines if line.get_label() == "mean confidence")
    np.testing.assert_allclose(marks.get_ydata(), found.confidence[filled])
    assert f"ECE {found.error:.3f}" in axes.get_title()
    assert "600 examples" in axes.get_title()
    check_readable(axes)


def test_it_draws_on_given_axes(predictions):
    _, axes = plt.subplots()
    assert plot_reliability(*predictions, ax=axes) is axes


@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        (np.array([[0.3], [1.7]]), [0, 0], ValueError, "of a regression are not prob"),
        (np.array([[0.3, 0.7]]), [0.5], TypeError, "numbers of the classes"),
        (np.array([0.3, 0.7]), [0, 1], ValueError, r"shape \(n, classes\)"),
    ],
)
def test_a_regression_has_no_diagram(probabilities, labels, error, message):
    with pytest.raises(error, match=message):
        plot_reliability(probabilities, labels)


def test_bins_are_counted(predictions):
    with pytest.raises(ValueError, match="Received: bins=0"):
        plot_reliability(*predictions, bins=0)
