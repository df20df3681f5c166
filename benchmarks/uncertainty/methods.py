"""Ways from tuned deltas to a posterior."""

import dataclasses

import numpy as np

from benchmarks.quality.suite import Data
from keras_bayestune.uncertainty import DeltaPosterior, laplace
from keras_bayestune.uncertainty.calibration import validation_loss
from keras_bayestune.uncertainty.laplace_approximation import trained

MEMBERS = 5
DRAWS = 10
SIGMAS = (0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
COST = 1.003  # TFB: the loss may be 0.3 % larger


@dataclasses.dataclass
class Tuned:
    """What the methods start from."""

    model: object
    deltas: list  # of the ensemble; the first is the point estimate
    own_masks: list  # of an ensemble with a mask for each member; may be empty
    iterates: list  # of the second half of the point estimate's stage 2
    scales: dict
    train: Data
    validation: Data
    loss: object
    effective_sizes: tuple  # candidates of `laplace`


def point(tuned):
    return DeltaPosterior(tuned.deltas[:1])


def ensemble(tuned):
    return DeltaPosterior(tuned.deltas[:MEMBERS])


def ensemble_of_ten(tuned):
    return DeltaPosterior(tuned.deltas) if len(tuned.deltas) == 10 else None


def ensemble_own_masks(tuned):
    return DeltaPosterior(tuned.own_masks) if tuned.own_masks else None


def laplace_(tuned):
    return laplace(
        tuned.model,
        tuned.deltas[0],
        tuned.train,
        tuned.validation,
        scales=tuned.scales,
        loss=tuned.loss,
        effective_sizes=tuned.effective_sizes,
        examples=300,
        draws=DRAWS,
        batch_size=50,
    )


def sigma_least(tuned):
    """One standard deviation for all scalars: the one of least validation loss."""
    losses = _losses(tuned)
    return _one_sigma(tuned, min(losses, key=losses.__getitem__))


def sigma_largest(tuned):
    """One standard deviation for all, the largest that costs 0.3 %, as TFB has it.

    Training-Free Bayesianization, Shi et al. 2024: the model must not get worse than
    that on anchor data, here the validation data.
    """
    losses = _losses(tuned)
    allowed = [s for s, loss in losses.items() if loss <= COST * losses[0.0]]
    return _one_sigma(tuned, max(allowed))


def _losses(tuned):
    x, y = tuned.validation
    losses = {}
    for sigma in (0.0, *SIGMAS):
        posterior = _one_sigma(tuned, sigma)
        found = posterior.predict(tuned.model, x, DRAWS, batch_size=50, verbose=0)
        losses[sigma] = validation_loss(posterior, found, y)
    return losses


def _one_sigma(tuned, sigma):
    delta = tuned.deltas[0]
    deviations = {
        target.path: np.full(len(target.delta.values), sigma, "float32")
        for target in trained(tuned.model, delta)
    }
    metadata = {"sigma": sigma}
    return DeltaPosterior([delta], [deviations], metadata=metadata)


def swag(tuned):
    """Mean and deviation of the iterates of the second half of stage 2.

    Maddox et al., "A Simple Baseline for Bayesian Uncertainty in Deep Learning",
    NeurIPS 2019, the diagonal form, at stage 2's own rate.
    """
    if not tuned.iterates:
        return None
    deviations, variables = {}, dict(tuned.deltas[0].variables)
    for target in trained(tuned.model, tuned.deltas[0]):
        path = target.path
        values = np.stack([d.variables[path].new_values for d in tuned.iterates])
        deviations[path] = values.std(axis=0)
        variables[path] = dataclasses.replace(
            variables[path], values=values.mean(axis=0).astype(values.dtype)
        )
    delta = type(tuned.deltas[0])(variables)
    return DeltaPosterior([delta], [deviations])


METHODS = {
    "point": point,
    "ensemble": ensemble,
    "ensemble of 10": ensemble_of_ten,
    "ensemble, own masks": ensemble_own_masks,
    "laplace": laplace_,
    "one sigma, least loss": sigma_least,
    "one sigma, 0.3 %": sigma_largest,
    "SWAG": swag,
}
