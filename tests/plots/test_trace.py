import doctest
import importlib

import numpy as np
import pytest

from keras_bayestune.diagnostics import effective_sample_size
from keras_bayestune.plots import plot_trace
from keras_bayestune.plots.trace import trace_statistics

NEVER_MOVES = np.full((40, 1), 0.1)


def scales(samples, scalars, seed=0):
    """Correlated positive samples whose level rises from scalar to scalar."""
    generator = np.random.default_rng(seed)
    walk = generator.normal(0, 0.2, size=(samples, scalars))
    for step in range(1, samples):
        walk[step] += 0.8 * walk[step - 1]
    return np.exp(walk + np.linspace(-12, -7, scalars)).astype(np.float32)


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_statistics():
    trace = scales(50, 3)
    running_mean, sizes = trace_statistics(trace)
    for count in (1, 2, 50):
        np.testing.assert_allclose(
            running_mean[count - 1], trace[:count].mean(axis=0, dtype=float), rtol=1e-12
        )
    np.testing.assert_array_equal(sizes, effective_sample_size(trace))
    assert running_mean.dtype == np.float64


def test_running_mean_of_a_scalar_that_never_moves_is_exact():
    assert set(trace_statistics(NEVER_MOVES).running_mean.ravel()) == {0.1}


@pytest.mark.parametrize(("samples", "known"), [(1, False), (9, False), (10, True)])
def test_effective_sample_size_needs_ten_samples(samples, known):
    trace = np.random.default_rng(0).normal(size=(samples, 2))
    assert np.isfinite(trace_statistics(trace).effective_sample_size).all() == known
    axes = plot_trace(trace)
    assert ("effective sample size" in axes.get_title()) == known
    assert any("ESS" in text for text in texts(axes)) == known


def test_lines_are_the_samples_and_their_running_means():
    trace = scales(50, 2)
    axes = plot_trace(trace)
    lines = axes.get_lines()
    assert len(lines) == 4
    for scalar in range(2):
        sample, mean = lines[2 * scalar : 2 * scalar + 2]
        np.testing.assert_array_equal(sample.get_xdata(), np.arange(1, 51))
        np.testing.assert_array_equal(sample.get_ydata(), trace[:, scalar])
        np.testing.assert_array_equal(
            mean.get_ydata(), trace_statistics(trace).running_mean[:, scalar]
        )
        assert sample.get_color() == mean.get_color()


def test_legend_names_mean_and_effective_sample_size():
    trace = scales(50, 2)
    sizes = effective_sample_size(trace)
    axes = plot_trace(trace)
    assert texts(axes)[:2] == ["sample", "running mean"]
    means = trace.mean(axis=0, dtype=float)
    assert texts(axes)[2:] == [
        f"scalar {scalar}: mean {means[scalar]:.2e}, ESS {sizes[scalar]:.0f}"
        for scalar in range(2)
    ]
    assert f"median {np.median(sizes):.0f}, least {min(sizes):.0f}" in axes.get_title()
    assert axes.get_xlabel() == "Posterior sample"
    assert axes.get_ylabel() == "Sampled scale"


def test_many_scalars_are_bands_and_the_least_settled():
    trace = scales(60, 32)
    sizes = effective_sample_size(trace)
    names = [f"body/kernel[{i}]" for i in range(32)]
    axes = plot_trace(trace, names=names)
    least = np.argsort(sizes)[:4]
    assert texts(axes)[:3] == ["90 %", "50 %", "median of 32 scalars"]
    assert [text.split(":")[0] for text in texts(axes)[3:]] == [names[i] for i in least]
    median, *means = axes.get_lines()
    np.testing.assert_allclose(median.get_ydata(), np.median(trace, axis=1))
    for line, scalar in zip(means, least, strict=True):
        expected = trace_statistics(trace).running_mean[:, scalar]
        np.testing.assert_array_equal(line.get_ydata(), expected)
    assert len(texts(plot_trace(trace[:, :8], names=names[:8]))) == 10
    with pytest.raises(ValueError, match="for each of the 32 scalars. Received: 31"):
        plot_trace(trace, names=names[1:])


def test_long_trace_is_thinned_for_drawing_only():
    trace = scales(5000, 1)
    axes = plot_trace(trace)
    sample, mean = axes.get_lines()
    assert len(sample.get_xdata()) == len(mean.get_xdata()) == 2000
    assert sample.get_xdata()[[0, -1]].tolist() == [1, 5000]
    assert mean.get_ydata()[-1] == pytest.approx(trace.mean(dtype=float), rel=1e-12)
    assert f"least {effective_sample_size(trace)[0]:.0f}" in axes.get_title()


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1, 101], "log"),
        ([1, 100], "linear"),
        ([0, 100], "linear"),
        ([-1, 500], "linear"),
    ],
)
def test_axis_is_logarithmic_where_it_helps(values, scale):
    assert plot_trace(np.array(values, float)[:, None]).get_yscale() == scale


@pytest.mark.parametrize(
    "trace",
    [
        scales(400, 1),
        scales(2000, 8),
        scales(100, 60),
        scales(5, 2),
        scales(1, 2),
        scales(200, 3) * 1e-20,
        1e-4 * (1 + scales(200, 3).astype(float)),
        NEVER_MOVES,
    ],
    ids=["one", "eight", "many", "few", "single", "tiny", "offset", "constant"],
)
def test_readable(trace, check_readable):
    check_readable(plot_trace(trace))


def test_nothing_is_subtracted_from_the_axis():
    axes = plot_trace(1e-4 * (1 + 1e-2 * scales(200, 3).astype(float)))
    axes.figure.canvas.draw()
    power = axes.yaxis.get_offset_text().get_text()
    assert power and "+" not in power


@pytest.mark.parametrize("shape", [(10,), (2, 10, 3), (0, 3), (10, 0), ()])
def test_shape(shape):
    with pytest.raises(ValueError, match=r"shape \(samples, scalars\)"):
        plot_trace(np.ones(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_must_be_finite(value):
    trace = scales(20, 2)
    trace[3, 1] = value
    with pytest.raises(ValueError, match=r"1 NaN or infinite sample\(s\) of 40"):
        plot_trace(trace)


def test_samples_must_be_real_numbers():
    with pytest.raises(TypeError, match="real numbers. Received: dtype complex128"):
        plot_trace(np.ones((20, 2), complex))


def test_examples():
    module = importlib.import_module(plot_trace.__module__)
    assert doctest.testmod(module).failed == 0
