import numpy as np
import pytest

from keras_bayestune import plot_error_vs_sparsity
from keras_bayestune.plots.error_vs_sparsity import error_curves

ERRORS = {
    "random": {0.02: [10.0, 12.0, 14.0], 0.005: [20.0, 20.0, 23.0], 0.1: [8, 8, 8]},
    "BayesTune": {0.02: [9.0, 10.0, 11.0], 0.005: 15.0},
    "full": {1.0: [7.0, 9.0]},
}


def test_means_and_standard_errors():
    curves = error_curves(ERRORS)
    assert list(curves) == ["random", "BayesTune", "full"]
    random = curves["random"]
    np.testing.assert_array_equal(random.fraction, [0.005, 0.02, 0.1])
    np.testing.assert_allclose(random.mean, [21.0, 12.0, 8.0])
    np.testing.assert_allclose(random.standard_error, [1.0, 2 / 3**0.5, 0.0])
    assert np.isnan(curves["BayesTune"].standard_error[0])


def test_what_is_drawn(check_readable):
    axes = plot_error_vs_sparsity(ERRORS)
    lines = {c.get_label(): c for c in axes.containers}
    assert set(lines) == {"random", "BayesTune"}
    data = lines["random"].lines[0]
    np.testing.assert_allclose(data.get_xdata(), [0.005, 0.02, 0.1])
    np.testing.assert_allclose(data.get_ydata(), [21.0, 12.0, 8.0])
    (bars,) = lines["random"].lines[2]
    low, high = np.array(bars.get_segments())[0][:, 1]
    assert (low, high) == pytest.approx((20.0, 22.0))
    (full,) = (line for line in axes.lines if line.get_label() == "full")
    assert list(full.get_ydata()) == [8.0, 8.0] and full.get_linestyle() == "--"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == list(ERRORS)
    assert axes.get_xscale() == "log"
    axes.figure.canvas.draw()
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert ticks == ["0.5 %", "2 %", "10 %"]
    check_readable(axes)


def test_many_methods_have_different_colours(check_readable):
    errors = {f"method {i}": {0.01: i, 0.1: i + 1} for i in range(13)}
    axes = plot_error_vs_sparsity(errors)
    colours = {container.lines[0].get_color() for container in axes.containers}
    assert len(colours) == 13
    check_readable(axes)


def test_it_draws_on_given_axes(check_readable):
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(layout="constrained")
    assert plot_error_vs_sparsity({"full": {1.0: 3.0}}, ax=axes) is axes
    check_readable(axes)


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ({}, "names no method"),
        ({"a": {}}, r"fractions of 'a' must be numbers in \(0, 1\].*\[\]"),
        ({"a": {0.0: [1]}}, r"Received: \[0.0\]"),
        ({"a": {0.5: [1], 1.5: [1]}}, r"Received: \[0.5, 1.5\]"),
        ({"a": {0.5: []}}, r"errors of 'a' at 0.5 must be finite"),
        ({"a": {0.5: [np.nan]}}, "must be finite"),
        ({"a": {0.5: [[1.0]]}}, "one for each run"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(errors, message):
    with pytest.raises(ValueError, match=message):
        plot_error_vs_sparsity(errors)
