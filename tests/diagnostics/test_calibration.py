import numpy as np
import pytest
import sklearn.metrics

from keras_bayestune.diagnostics import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)

MEASURES = negative_log_likelihood, expected_calibration_error, brier_score


@pytest.fixture(scope="module")
def predictions():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.7, 1.0, 2.0], size=400)
    return probabilities, rng.integers(0, 3, 400)


def test_negative_log_likelihood_is_that_of_scikit_learn(predictions):
    expected = sklearn.metrics.log_loss(predictions[1], predictions[0])
    assert negative_log_likelihood(*predictions) == pytest.approx(expected)


def test_brier_score_is_that_of_scikit_learn(predictions):
    expected = sklearn.metrics.brier_score_loss(
        predictions[1], predictions[0], scale_by_half=False
    )
    assert brier_score(*predictions) == pytest.approx(expected)


def test_calibration_error_by_hand(predictions):
    probabilities, labels = predictions
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for low in np.arange(7) / 7:
        inside = (low < confidence) & (confidence <= low + 1 / 7)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    found = expected_calibration_error(probabilities, labels, bins=7)
    assert found == pytest.approx(expected)


def test_a_sure_prediction_is_in_the_last_bin():
    probabilities = np.array([[1.0, 0.0], [0.98, 0.02]])
    assert expected_calibration_error(probabilities, np.array([0, 1])) == 0.49


def test_calibrated_predictions_have_a_small_error():
    rng = np.random.default_rng(1)
    p = rng.uniform(size=20_000)
    labels = (rng.uniform(size=p.size) < p).astype(int)
    calibrated = np.stack([1 - p, p], 1)
    sure = np.round(calibrated)
    assert expected_calibration_error(calibrated, labels) < 0.02
    assert expected_calibration_error(sure, labels) == pytest.approx(0.25, abs=0.02)


def test_a_wrong_certainty_costs_a_finite_number():
    assert negative_log_likelihood([[0.0, 1.0]], [0]) == pytest.approx(87.34, abs=0.01)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("probabilities", "labels", "error", "message"),
    [
        ([[0.5, 0.5]], [0.0], TypeError, "integers, the numbers"),
        ([0.5, 0.5], [0, 1], ValueError, r"shapes \(2,\) and \(2,\)"),
        ([[0.5, 0.5]], [0, 1], ValueError, r"shapes \(1, 2\) and \(2,\)"),
        (np.zeros((0, 2)), np.zeros(0, int), ValueError, "one example at least"),
        ([[0.5, 0.5]], [2], ValueError, r"\[0, 2\). Received: 2 to 2"),
        ([[0.5, 0.5]], [-1], ValueError, "Received: -1"),
        ([[2.0, -1.0]], [0], ValueError, "Apply a softmax"),
        ([[0.5, 0.6]], [0], ValueError, "sums from 1.1 to 1.1"),
        ([[np.nan, 0.6]], [0], ValueError, "Apply a softmax"),
    ],
)
def test_what_is_no_prediction_is_an_error(
    measure, probabilities, labels, error, message
):
    with pytest.raises(error, match=message):
        measure(probabilities, np.array(labels))


@pytest.mark.parametrize("bins", [0, 1.5, True])
def test_bins_are_counted(bins):
    with pytest.raises(ValueError, match=f"Received: bins={bins}"):
        expected_calibration_error([[0.5, 0.5]], [0], bins=bins)
