"""One number found on validation data: a temperature, or the variance of the noise."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_bayestune.diagnostics import negative_log_likelihood
from keras_bayestune.uncertainty.posterior import DeltaPosterior, Prediction
from keras_bayestune.uncertainty.predicting import tempered

_LARGEST = 100.0  # temperature, and 1/100 the smallest
_STEPS = 60  # of the search; each leaves 0.618 of the interval


def calibrate(
    posterior: DeltaPosterior,
    model: keras.Model,
    validation: Any,
    draws: int | None = None,
    *,
    batch_size: int = 32,
    seed: int = 0,
    verbose: str | int = "auto",
) -> DeltaPosterior:
    """Return the posterior with the temperature, or noise, that fits validation data.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", ICML
    2017, section 4.2; of averaged probabilities, "pool, then calibrate": Rahaman &
    Thiery, "Uncertainty Quantification and Deep Ensembles", NeurIPS 2021.

    ```
    classifier:  T   = argmin  -mean_n log p_n(y_n),   p ~ (mean over draws of p)^(1/T)
    regression:  s^2 = argmin  mean_n (log(v_n + s^2) + (y_n - m_n)^2 / (v_n + s^2))
    ```

    with m and v mean and variance over draws. Accuracy does not change. Needs one
    prediction, so `draws` passes over the validation data.

    Args:
        posterior: Any, with one delta and no deviations as well.
        model: As in `DeltaPosterior.predict`.
        validation: `(x, y)`, examples that neither training nor the choice of
            hyperparameters has seen too much of: integer labels of a classifier, else
            numbers of the outputs' shape.
        draws: As in `predict`, and so are the others.
        batch_size: Rows of a batch.
        seed: Of the draws.
        verbose: 0 for no progress bar.

    Returns:
        A new posterior; T lies in [0.01, 100].

    Raises:
        TypeError: Labels that are not integers.
        ValueError: No validation data, or labels that do not fit the outputs.

    Examples:
        >>> from keras_bayestune import SparseDelta
        >>> from keras_bayestune.uncertainty import DeltaPosterior, calibrate
        >>> base = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> tuned = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
        >>> tuned.set_weights([np.zeros((1, 2)), np.array([0.0, 4.0])])
        >>> point = DeltaPosterior([SparseDelta.from_checkpoints(base, tuned)])
        >>> x, y = np.zeros((4, 1)), np.array([1, 1, 1, 0])  # right 3 times of 4
        >>> honest = calibrate(point, base, (x, y), verbose=0)
        >>> honest.predict(base, x[:1], verbose=0).mean.round(3).tolist()
        [[0.25, 0.75]]
    """
    x, y = checked_validation(validation)
    plain = posterior.replace(temperature=1.0, noise_variance=0.0)
    prediction = plain.predict(
        model, x, draws, batch_size=batch_size, seed=seed, verbose=verbose
    )
    if posterior.is_classification:
        return posterior.replace(temperature=best_temperature(prediction.mean, y))
    return posterior.replace(noise_variance=_noise_variance(prediction, y))


def best_temperature(probabilities: np.ndarray, labels: Any) -> float:
    """Return the T in [0.01, 100] of the least negative log-likelihood."""
    labels = np.asarray(labels).reshape(-1)
    p = probabilities.reshape(-1, probabilities.shape[-1])
    limit = math.log(_LARGEST)
    log_temperature = _minimum(
        lambda t: negative_log_likelihood(tempered(p, math.exp(t)), labels),
        -limit,
        limit,
    )
    return math.exp(log_temperature)


def checked_validation(validation: Any) -> tuple[Any, Any]:
    """Return inputs and labels.

    Raises:
        ValueError: There are none.
    """
    if not isinstance(validation, tuple) or len(validation) != 2:
        raise ValueError(
            "This number is found on validation data: pass a tuple (x, y) of arrays. "
            f"Received: {type(validation).__name__}."
        )
    return validation


def validation_loss(posterior: DeltaPosterior, prediction: Prediction, y: Any) -> float:
    """Negative log-likelihood per example of a prediction; of a regression Gaussian.

    A regression's noise is the one that fits these data best.
    """
    if posterior.is_classification:
        p = prediction.mean.reshape(-1, prediction.mean.shape[-1])
        return negative_log_likelihood(p, np.asarray(y).reshape(-1))
    noise = _noise_variance(prediction, y)
    total = prediction.variance - posterior.noise_variance + noise
    return 0.5 * (math.log(2.0 * math.pi) + _gaussian(_residual(prediction, y), total))


def _noise_variance(prediction: Prediction, y: Any) -> float:
    residual = _residual(prediction, y)
    largest = float(np.mean(np.square(residual)))
    if largest == 0.0:
        return 0.0
    # Above the mean square the likelihood only falls.
    high = math.log(largest)
    log_variance = _minimum(
        lambda s: _gaussian(residual, prediction.variance + math.exp(s)),
        high - math.log(1e8),
        high,
    )
    return math.exp(log_variance)


def _residual(prediction: Prediction, y: Any) -> np.ndarray:
    targets = np.asarray(y, np.float64)
    if targets.shape + (1,) == prediction.mean.shape:
        targets = targets[..., None]
    if targets.shape != prediction.mean.shape:
        raise ValueError(
            "The validation targets must have the shape of the outputs, "
            f"{prediction.mean.shape}. Received: {targets.shape}."
        )
    return targets - prediction.mean


def _gaussian(residual: np.ndarray, variance: np.ndarray) -> float:
    return float(np.mean(np.log(variance) + np.square(residual) / variance))


def _minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    """Golden-section search (Kiefer, 1953) of a loss with one minimum."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = loss(right)
    return (low + high) / 2.0
