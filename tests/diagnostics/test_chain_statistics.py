import sys

import numpy as np
import pytest

from keras_bayestune import SparseMaskCallback
from keras_bayestune.diagnostics import effective_sample_size, r_hat
from keras_bayestune.plots.trace import trace_statistics

STATISTICS = pytest.mark.parametrize("statistic", [effective_sample_size, r_hat])


def autoregressive(correlation, draws, scalars, seed=0):
    """Stationary AR(1) chains of unit variance, shape (draws, scalars)."""
    generator = np.random.default_rng(seed)
    chain = generator.normal(size=(draws, scalars))
    for step in range(1, draws):
        chain[step] *= np.sqrt(1 - correlation**2)
        chain[step] += correlation * chain[step - 1]
    return chain


@pytest.mark.parametrize("method", ["mean", "bulk"])
@pytest.mark.parametrize("correlation", [-0.5, 0.0, 0.5, 0.9])
def test_autoregressive_chain_has_its_analytic_size(correlation, method):
    chain = autoregressive(correlation, 4000, 100)
    analytic = 4000 * (1 - correlation) / (1 + correlation)
    # The estimator's own bias at this length is below 2.5 %, its error below 1.7 %.
    sizes = effective_sample_size(chain, method)
    assert sizes.mean() == pytest.approx(analytic, rel=0.04)


def test_size_predicts_the_error_of_the_mean():
    chain = autoregressive(0.8, 500, 800)
    predicted = 1 / effective_sample_size(chain).mean()
    # A variance from 800 means has a relative standard error of 5 %.
    assert predicted == pytest.approx(chain.mean(axis=0).var(), rel=0.15)


def test_tails_of_independent_draws_are_worth_about_all_of_them():
    sizes = effective_sample_size(autoregressive(0.0, 4000, 50), "tail")
    # The smaller one of two quantiles, each of size 4000.
    assert 3400 < sizes.mean() < 4000


def test_bulk_size_is_not_disturbed_by_a_heavy_tail():
    chain = autoregressive(0.9, 1000, 40)
    heavy = np.exp(6 * chain)
    for method, same in (("bulk", True), ("mean", False)):
        sizes = [effective_sample_size(c, method).mean() for c in (chain, heavy)]
        assert (abs(sizes[1] / sizes[0] - 1) < 1e-6) == same


def test_r_hat_is_one_where_chains_agree_and_large_where_they_differ():
    chains = autoregressive(0.0, 1000, 60).reshape(1000, 4, 15).swapaxes(0, 1)
    assert np.all(np.abs(r_hat(chains) - 1) < 0.02)
    chains[0, :, 3] += 2.0
    chains[0, :, 5] *= 10.0  # the same mean: folding finds it
    found = r_hat(chains)
    assert found[3] > 1.2 and found[5] > 1.2
    assert np.all(np.abs(np.delete(found, [3, 5]) - 1) < 0.02)


def test_one_chain_is_compared_with_itself():
    chain = autoregressive(0.0, 500, 2)
    chain[250:, 1] += 3.0
    found = r_hat(chain)
    assert abs(found[0] - 1) < 0.02 and found[1] > 1.5


@STATISTICS
def test_shapes(statistic):
    chain = autoregressive(0.5, 60, 4)
    found = statistic(chain)
    assert found.shape == (4,) and found.dtype == np.float64
    alone = statistic(chain[:, 0])
    assert np.ndim(alone) == 0 and alone == pytest.approx(found[0], rel=1e-9)
    np.testing.assert_array_equal(statistic(chain[None]), found)
    assert statistic(np.zeros((60, 0))).shape == (0,)
    assert statistic(np.zeros((2, 10, 1))).shape == (1,)  # the fewest draws


def test_two_chains_that_agree_double_the_size():
    chains = autoregressive(0.5, 4000, 60).reshape(4000, 2, 30).swapaxes(0, 1)
    one = effective_sample_size(chains[0]).mean()
    assert effective_sample_size(chains).mean() == pytest.approx(2 * one, rel=0.06)


def test_chains_that_disagree_have_almost_no_size():
    chains = autoregressive(0.0, 500, 2).T[:, :, None]
    chains[1] += 100
    assert effective_sample_size(chains)[0] < 5


def test_drift_shows_in_one_chain():
    # Each half looks independent: only the comparison of the halves sees the jump.
    chain = autoregressive(0.0, 500, 1)[:, 0]
    chain[250:] += 100
    assert effective_sample_size(chain) < 5


@STATISTICS
def test_location_and_unit_do_not_matter(statistic):
    chain = autoregressive(0.7, 300, 3)
    found = statistic(chain)
    # The two middle draws are equally far from the median: rounding ranks them.
    precision = 1e-3 if statistic is r_hat else 1e-9
    for other in (1e-200 * chain, 5 - 2 * chain):
        np.testing.assert_allclose(statistic(other), found, rtol=precision)
    narrow = (1e4 + chain).astype(np.float32)
    np.testing.assert_array_equal(statistic(narrow), statistic(narrow.astype(float)))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, -7e8])
def test_scalar_that_never_moves(value):
    chain = autoregressive(0.5, 50, 3)
    before = [effective_sample_size(chain), r_hat(chain)]
    chain[:, 1] = value
    for statistic, found, constant in zip(
        (effective_sample_size, r_hat), before, (50.0, np.nan), strict=True
    ):
        expected = [found[0], constant, found[2]]
        np.testing.assert_allclose(statistic(chain), expected, rtol=1e-9)


@STATISTICS
@pytest.mark.parametrize("shape", [(), (2, 20, 3, 4)])
def test_number_of_axes(statistic, shape):
    with pytest.raises(ValueError, match=r"must have shape.*Received: shape"):
        statistic(np.zeros(shape))


@STATISTICS
@pytest.mark.parametrize("shape", [(9,), (9, 100), (100, 9, 2), (0, 20, 2)])
def test_too_few_draws(statistic, shape):
    with pytest.raises(ValueError, match="at least one chain of 10 draws"):
        statistic(np.zeros(shape))


@STATISTICS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_draws_must_be_finite(statistic, value):
    chain = autoregressive(0.0, 20, 3)
    chain[4:6, 1] = value
    with pytest.raises(ValueError, match=r"2 NaN or infinite draw\(s\) of 60"):
        statistic(chain)


@STATISTICS
@pytest.mark.parametrize("dtype", [complex, str, object])
def test_draws_must_be_real_numbers(statistic, dtype):
    with pytest.raises(TypeError, match="real numbers. Received: dtype"):
        statistic(np.zeros(20).astype(dtype))


def test_methods():
    with pytest.raises(ValueError, match=r"must be one of.*'bulk'.*Received: 'median'"):
        effective_sample_size(np.zeros(20), "median")


@pytest.mark.parametrize(
    "needing",
    [
        lambda: effective_sample_size(np.zeros(20)),
        lambda: r_hat(np.zeros(20)),
        lambda: trace_statistics(np.zeros((20, 1))),
        lambda: SparseMaskCallback(trace_scalars=1),
    ],
)
def test_what_to_install_is_said(monkeypatch, needing):
    monkeypatch.setitem(sys.modules, "arviz_stats.base", None)
    with pytest.raises(ImportError, match="`pip install arviz-stats`"):
        needing()
    SparseMaskCallback()  # does without
    trace_statistics(np.zeros((9, 1)))
