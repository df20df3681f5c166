"""R-hat and effective sample size of Markov chains, by arviz-stats."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

# Split halves need five draws to say anything of their autocorrelation.
MINIMUM_DRAWS = 10

TAILS = (0.05, 0.95)  # quantiles, as in Stan
METHODS = ("mean", "bulk", "tail")


def arviz() -> Any:
    """Return the array functions of arviz-stats.

    Imported when needed: SciPy's statistics, which it takes along, need a second.

    Raises:
        ImportError: arviz-stats is not installed.
    """
    try:
        from arviz_stats.base import array_stats
    except ImportError as error:
        raise ImportError(
            "Chain statistics (effective sample size, R-hat) need arviz-stats, which "
            "is not installed. Install it with `pip install arviz-stats`."
        ) from error
    return array_stats


def effective_sample_size(
    chain: npt.ArrayLike, method: str = "mean"
) -> np.float64 | np.ndarray:
    """Number of independent draws that would say as much as the chain does.

    Source: Vehtari, Gelman, Simpson, Carpenter and Burkner, "Rank-normalization,
    folding, and localization: an improved R-hat", Bayesian Analysis 2021, section 3,
    as arviz-stats computes it. Chains are split in half, so that a drift counts as
    correlation.

    Args:
        chain: Draws: `(draws,)` for one scalar, `(draws, scalars)` for one chain of
            many scalars, `(chains, draws, scalars)` for several chains. At least 10
            draws.
        method: Of what: `"mean"`, the posterior mean, which ranks the scores;
            `"bulk"`, the same of rank-normalised draws, which a heavy tail does not
            disturb; `"tail"`, the smaller of those of the quantiles 5 % and 95 %.

    Returns:
        Draws, float64: a scalar for `(draws,)`, else of shape `(scalars,)`. All draws
        for a scalar that never moves: its mean is exact, and its mixing unknown.

    Raises:
        ImportError: arviz-stats is not installed.
        TypeError: The draws are not real numbers.
        ValueError: Another number of axes, fewer than 10 draws, no chain, a draw that
            is not finite, or another `method`.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune.diagnostics import effective_sample_size
        >>> noise = np.random.default_rng(0).normal(size=4000)
        >>> walk = np.zeros(4000)
        >>> for step in range(1, 4000):
        ...     walk[step] = 0.9 * walk[step - 1] + noise[step]
        >>> bool(150 < effective_sample_size(walk) < 300)  # 4000 (1-0.9)/(1+0.9) = 211
        True
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}. Received: {method!r}.")
    draws = _checked(chain)
    arguments = {"prob": TAILS} if method == "tail" else {}
    sizes = arviz().ess(draws, chain_axis=0, draw_axis=1, method=method, **arguments)
    return _as_given(sizes, chain)


def r_hat(chains: npt.ArrayLike) -> np.float64 | np.ndarray:
    """How much wider all chains together are than each by itself: 1 if they agree.

    Source as for `effective_sample_size`, section 4: of split, rank-normalised and
    folded draws, the larger one. Above 1.01 the chains are not draws of one
    distribution yet, says the paper, which had four chains of thousands of draws in
    mind; with 40 draws each, R-hat of chains that do agree scatters up to about 1.1.

    Args:
        chains: Draws, as for `effective_sample_size`; one chain is compared with
            itself, half against half.

    Returns:
        float64: a scalar for `(draws,)`, else of shape `(scalars,)`. NaN for a scalar
        that never moves in any chain.

    Raises:
        ImportError: arviz-stats is not installed.
        TypeError: The draws are not real numbers.
        ValueError: As in `effective_sample_size`.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune.diagnostics import r_hat
        >>> chains = np.random.default_rng(0).normal(size=(2, 500, 1))
        >>> bool(r_hat(chains)[0] < 1.02)
        True
        >>> chains[1] += 2.0
        >>> bool(r_hat(chains)[0] > 1.2)
        True
    """
    draws = _checked(chains)
    if len(draws) == 1:  # arviz-stats wants two
        half = draws.shape[1] // 2
        draws = np.concatenate([draws[:, :half], draws[:, -half:]])
    with warnings.catch_warnings():
        # Nothing divided by nothing, where no chain moves: NaN.
        warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
        found = arviz().rhat(draws, chain_axis=0, draw_axis=1)
    return _as_given(found, chains)


def _checked(chain: npt.ArrayLike) -> np.ndarray:
    """Return draws of the shape `(chains, draws, scalars)`, float64."""
    draws = np.asarray(chain)
    if draws.dtype.kind not in "biuf":
        raise TypeError(
            f"`chain` must hold real numbers. Received: dtype {draws.dtype}. "
            "Pass a float array."
        )
    if draws.ndim not in (1, 2, 3):
        raise ValueError(
            "`chain` must have shape (draws,), (draws, scalars) or "
            f"(chains, draws, scalars). Received: shape {draws.shape}. "
            "Flatten the scalars into the last axis."
        )
    if draws.ndim == 1:
        draws = draws[:, None]
    if draws.ndim == 2:
        draws = draws[None]
    if draws.shape[0] == 0 or draws.shape[1] < MINIMUM_DRAWS:
        raise ValueError(
            f"`chain` must hold at least one chain of {MINIMUM_DRAWS} draws. Received: "
            f"{draws.shape[0]} chain(s) of {draws.shape[1]} draws (shape "
            f"{np.shape(chain)}; the axis of the draws is the first, or the second "
            "of three). Sample longer, or thin less."
        )
    draws = draws.astype(np.float64)
    invalid = draws.size - np.count_nonzero(np.isfinite(draws))
    if invalid:
        raise ValueError(
            f"`chain` must be finite. Received: {invalid} NaN or infinite draw(s) of "
            f"{draws.size}. Drop these scalars, or sample with a smaller learning rate."
        )
    # The statistics do not change with location and unit, and squares of draws as
    # small as scales can be would underflow.
    low = draws.min(axis=(0, 1))
    spread = draws.max(axis=(0, 1)) - low
    return (draws - low) / np.where(spread > 0, spread, 1.0)


def _as_given(found: np.ndarray, chain: npt.ArrayLike) -> np.float64 | np.ndarray:
    return found[0] if np.ndim(chain) == 1 else found
