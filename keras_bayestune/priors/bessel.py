"""Modified Bessel functions of the second kind, K, as array operations.

The order is fixed when an object is built: float64 values from a quadrature are
fitted once by a polynomial, and a call evaluates only that polynomial. So no Bessel
routine is needed at run time, on any backend.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from keras import ops

Tensor = Any  # a backend tensor

_DEGREE = 12
_NODES = 400
SMALLEST_ARGUMENT = 1e-8  # smaller ones are read as this one
_LARGEST = 1e6


def scaled_bessel_k(order: float, argument: np.ndarray) -> np.ndarray:
    """Compute `exp(w) K_order(w)` in float64 for `w > 0`.

    K_v(w) = int_0^inf exp(-w cosh t) cosh(v t) dt. The trapezoidal rule converges
    geometrically here (Trefethen & Weideman, SIAM Review 2014); against
    `scipy.special.kve` the relative error is below 1e-13 for orders up to 3.
    """
    w = np.asarray(argument, np.float64)[..., None]
    end = np.arccosh(1.0 + 745.0 / w)  # beyond it the integrand underflows
    t = end * np.linspace(0.0, 1.0, _NODES)
    values = np.exp(-2.0 * w * np.sinh(0.5 * t) ** 2) * np.cosh(order * t)
    return np.trapezoid(values, t, axis=-1)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    result: Tensor = coefficients[-1]  # a number, until it meets `x`
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result


def _stretched_log(w: Any, log1p: Any) -> tuple[Any, Any]:
    """Return `L = log(1 + 1/w)` and `z = L / (3 + L)` in [0, 1)."""
    log = log1p(1.0 / w)
    return log, log / (3.0 + log)


def _nodes(largest: float = _LARGEST) -> np.ndarray:
    return np.geomspace(SMALLEST_ARGUMENT, largest, 1000)


def _fit(z: np.ndarray, values: np.ndarray) -> tuple[tuple[float, ...], float]:
    """Fit a polynomial in `2 z / max(z) - 1`; return it and the factor of `z`."""
    factor = 2.0 / float(z.max())
    series = np.polynomial.chebyshev.chebfit(factor * z - 1.0, values, _DEGREE)
    power = np.polynomial.chebyshev.cheb2poly(series)
    return tuple(float(c) for c in power), factor


class LogBesselRatio:
    """`log K_m(w) - log K_n(w)` for fixed orders, as array operations.

    -(n - m) L + P(2 z / z_max - 1) with L = log(1 + 1/w), z = L / (3 + L) and P of
    degree 12, fitted on log-spaced w in [1e-8, 1e6]. Relative error of the ratio in
    float32: below 5e-5 for orders in [0, 2].
    """

    def __init__(self, numerator: float, denominator: float):
        """Fit the ratio K_numerator / K_denominator."""
        self.slope = abs(numerator) - abs(denominator)
        w = _nodes()
        log, z = _stretched_log(w, np.log1p)
        ratio = scaled_bessel_k(numerator, w) / scaled_bessel_k(denominator, w)
        self._polynomial, self._factor = _fit(z, np.log(ratio) - self.slope * log)

    def __call__(self, w: Tensor) -> Tensor:
        """Evaluate at `w >= 0`, any shape."""
        log, z = _stretched_log(
            ops.threshold(w, SMALLEST_ARGUMENT, SMALLEST_ARGUMENT), ops.log1p
        )
        return self.slope * log + _horner(self._polynomial, self._factor * z - 1.0)


class LogBesselK:
    """`log K_order(w)` for a fixed order, as array operations.

    -w + |order| L - log(1 + w)/2 + P(2 z / z_max - 1), L and z as in
    `LogBesselRatio`.
    """

    def __init__(self, order: float):
        """Fit log K_order."""
        self.order = abs(order)
        w = _nodes()
        log, z = _stretched_log(w, np.log1p)
        rest = np.log(scaled_bessel_k(order, w)) - self.order * log
        self._polynomial, self._factor = _fit(z, rest + 0.5 * np.log1p(w))

    def __call__(self, w: Tensor) -> Tensor:
        """Evaluate at `w >= 0`, any shape."""
        w = ops.threshold(w, SMALLEST_ARGUMENT, SMALLEST_ARGUMENT)
        log, z = _stretched_log(w, ops.log1p)
        smooth = _horner(self._polynomial, self._factor * z - 1.0)
        return self.order * log - w - 0.5 * ops.log1p(w) + smooth


class Shrinkage:
    """kappa(w) = (w/2) K_|2-alpha|(w) / K_|1-alpha|(w), as array operations.

    This is `|d| E[1/scale | d]` at `w = 2 sqrt(beta |d|)`; by the recurrence of K it
    equals `(1 - alpha) + beta E[scale | d]`. It is evaluated for every scalar at
    every step, so where a rational form `(1 + w/2) P(2 x - 1)`, `x = w / (1 + w)`,
    meets the error bound (alpha = 0.5 and alpha up to about 0.2) that form is used:
    one division in place of a logarithm and an exponential. For alpha >= 1 kappa
    vanishes at 0, where only the logarithmic form keeps its relative error.
    """

    bound = 5e-5  # largest relative error of the rational form that is accepted

    def __init__(self, alpha: float):
        """Fit kappa for a Gamma shape `alpha`."""
        w = np.concatenate([[1e-9], _nodes()])
        numerator = scaled_bessel_k(abs(2.0 - alpha), w)
        exact = 0.5 * w * numerator / scaled_bessel_k(abs(1.0 - alpha), w)
        x = 2.0 * w / (1.0 + w) - 1.0
        self.rational: tuple[float, ...] | None = None
        for degree in range(4, _DEGREE + 1) if alpha < 1.0 else ():
            power, error = _fit_minimax(x, exact / (1.0 + 0.5 * w), degree)
            if error <= self.bound:
                self.rational = power
                break
        else:
            self._log_ratio = LogBesselRatio(abs(2.0 - alpha), abs(1.0 - alpha))

    def __call__(self, w: Tensor) -> Tensor:
        """Evaluate at `w >= 0`, any shape."""
        if self.rational is None:
            return 0.5 * w * ops.exp(self._log_ratio(w))
        # In 1 + w only: a square root read twice would keep XLA on CPUs from making
        # one loop of a whole update.
        above = 1.0 + w
        polynomial = _horner(self.rational, 1.0 - 2.0 / above)
        return (0.5 + 0.5 * above) * polynomial


def _fit_minimax(
    x: np.ndarray, values: np.ndarray, degree: int
) -> tuple[tuple[float, ...], float]:
    """Fit a polynomial of least largest relative error (Lawson's algorithm, 1961)."""
    basis = np.polynomial.chebyshev.chebvander(x, degree) / values[:, None]
    weight = np.full(len(x), 1.0 / len(x))
    best, smallest = np.zeros(degree + 1), np.inf
    for _ in range(30):
        root = np.sqrt(weight)
        series = np.linalg.lstsq(basis * root[:, None], root, rcond=None)[0]
        error = np.abs(basis @ series - 1.0)
        if error.max() < smallest:
            best, smallest = series, float(error.max())
        weight *= error + 1e-15
        weight /= weight.sum()
    power = np.polynomial.chebyshev.cheb2poly(best)
    return tuple(float(c) for c in power), smallest


log_bessel_ratio = lru_cache(maxsize=64)(LogBesselRatio)
log_bessel_k = lru_cache(maxsize=64)(LogBesselK)
shrinkage = lru_cache(maxsize=64)(Shrinkage)
