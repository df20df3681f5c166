"""Effective sample size of a Markov chain's mean, in NumPy."""

import numpy as np
import numpy.typing as npt

# Split halves need five draws for one pair of autocorrelations beyond lag 1.
MINIMUM_DRAWS = 10

# Draws taken through the transform at a time: about 128 MB of work space.
_BLOCK = 2**21


def effective_sample_size(chain: npt.ArrayLike) -> np.float64 | np.ndarray:
    """Number of independent draws whose mean would be as precise as the chain's.

    Source: Vehtari, Gelman, Simpson, Carpenter and Burkner, "Rank-normalization,
    folding, and localization: an improved R-hat", Bayesian Analysis 2021, section 3
    (as in Stan), with the initial monotone positive sequence of Geyer, Statistical
    Science 1992. Chains are split in half, so that a drift counts as correlation.
    There is no rank normalisation: this is the figure for the posterior mean, which
    ranks the scores (`method="mean"` of ArviZ), not Stan's "bulk" figure.

    ```
    rho_t = 1 - (W - mean_chains(autocovariance_t)) / (W (n - 1) / n + B / n)
    P_k   = min_{j <= k} (rho_{2j} + rho_{2j+1})      up to the first P_K <= 0
    tau   = max(-1 + 2 sum_{k < K} P_k + max(rho_{2K}, 0), 1 / log10(S))
    ESS   = S / tau
    ```

    Args:
        chain: Draws: `(draws,)` for one scalar, `(draws, scalars)` for one chain of
            many scalars, `(chains, draws, scalars)` for several chains. `W` and `B`
            are the variances within and between the split chains, `n` the draws of
            a split chain, `S` the draws of all of them. At least 10 draws.

    Returns:
        Draws, float64: a scalar for `(draws,)`, else of shape `(scalars,)`. Never
        above `S log10(S)`, which antithetic chains reach. `S` for a scalar that
        never moves, as in ArviZ: its mean is exact, and its mixing unknown.

    Raises:
        TypeError: The draws are not real numbers.
        ValueError: Another number of axes, fewer than 10 draws, no chain, or a draw
            that is not finite.

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
    single = draws.ndim == 1
    if single:
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

    sizes = np.empty(draws.shape[2])
    width = max(1, _BLOCK // (draws.shape[0] * draws.shape[1]))
    for start in range(0, len(sizes), width):
        block = draws[:, :, start : start + width].astype(np.float64)
        invalid = block.size - np.count_nonzero(np.isfinite(block))
        if invalid:
            raise ValueError(
                f"`chain` must be finite. Received: {invalid} NaN or infinite "
                f"draw(s) among scalars {start} to {start + block.shape[2] - 1}. "
                "Drop these scalars, or sample with a smaller learning rate."
            )
        sizes[start : start + width] = _of_block(block)
    return sizes[0] if single else sizes


def _of_block(draws: np.ndarray) -> np.ndarray:
    """ESS per scalar of finite float64 draws, shape (chains, draws, scalars)."""
    half = draws.shape[1] // 2
    split = np.concatenate([draws[:, :half], draws[:, -half:]])
    total = split.shape[0] * half

    # The ESS does not change with location and unit, and squares of draws as small
    # as scales can be would underflow.
    low = split.min(axis=(0, 1))
    spread = split.max(axis=(0, 1)) - low
    constant = spread == 0
    split = (split - low) / np.where(constant, 1.0, spread)

    covariance = _autocovariance(split).mean(axis=0)
    within = covariance[0] * half / (half - 1)
    variance = covariance[0] + split.mean(axis=1).var(axis=0, ddof=1)
    rho = 1 - (within - covariance) / np.where(constant, 1.0, variance)
    rho[0] = 1

    # Pairs up to lag half - 2, as Stan: the last lags rest on one product each.
    count = (half - 1) // 2
    even = rho[0 : 2 * count : 2]
    pairs = even + rho[1 : 2 * count : 2]
    ended = np.logical_or.accumulate(pairs <= 0)
    ended[-1] = True
    monotone = np.minimum.accumulate(pairs)
    last = np.take_along_axis(even, ended.argmax(axis=0)[None], axis=0)[0]
    tau = -1 + 2 * np.where(ended, 0, monotone).sum(axis=0) + np.maximum(last, 0)
    size = total / np.maximum(tau, 1 / np.log10(total))
    return np.where(constant, total, size)


def _autocovariance(draws: np.ndarray) -> np.ndarray:
    """Autocovariance at every lag along axis 1, by FFT, divided by the draws."""
    count = draws.shape[1]
    padded = 1 << (2 * count - 1).bit_length()
    spectrum = np.fft.rfft(draws - draws.mean(axis=1, keepdims=True), padded, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    return np.fft.irfft(power, padded, axis=1)[:, :count] / count
