"""A distribution over deltas of one base, to predict with and to keep in a file."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bayestune import document_file
from keras_bayestune.arguments import check_integer, check_number
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.deltas.variable import DTYPES
from keras_bayestune.uncertainty.checking import checked_deltas, checked_deviations
from keras_bayestune.uncertainty.file import FORMAT, from_document, to_document
from keras_bayestune.uncertainty.predicting import (
    base_lent,
    outputs_under,
    softmax,
    tempered,
)

Deviations = Mapping[str, np.ndarray]
OUTPUTS = ("logits", "probabilities", "values")
DRAWS = 10


class Prediction(NamedTuple):
    """What `DeltaPosterior.predict` returns.

    Attributes:
        mean: float64. Of a classifier the mean probabilities, (n, classes); of a
            regression the mean output, of the outputs' shape.
        variance: float64, of the same shape: of the probabilities over the draws; of a
            regression the predictive variance, noise included.
    """

    mean: np.ndarray
    variance: np.ndarray


class DeltaPosterior:
    """Several deltas of one base, each with or without Gaussian noise about it.

    ```
    theta ~ (1/K) sum_k Normal(delta_k, diag(deviation_k^2))
    p(y | x) = mean over draws theta of p(y | x, theta)^, p^ ~ p^(1/temperature)
    ```

    K = 1 without deviations is the point estimate, K > 1 an ensemble, one delta with
    deviations a Gaussian such as `laplace` makes. Deviations are on the stored scalars
    only (the selected ones and the head), so that a draw is a plain delta of a few MB.

    It is a value: nothing changes it, and `calibrate` returns a new one. The model is
    lent to `predict` and comes back bit for bit, also after an error. It holds the
    base, or, after `fit`, the values of one of the deltas if that still knows its base.

    Args:
        deltas: K >= 1 deltas of one base.
        deviations: `None`, or for each delta `{variable path: standard deviations}`,
            float, >= 0, one for each stored scalar, in the unit of the weight; paths
            that are missing have no noise.
        outputs: What the model puts out: `"logits"` (of a softmax over the last axis;
            one column is a binary classifier's), `"probabilities"` or `"values"` (a
            regression).
        temperature: T > 0 of a classifier: the averaged probabilities to the power
            1/T. 1 leaves them, more makes them less sure. `calibrate` finds it.
        noise_variance: >= 0, of a regression's observations, in the squared unit of
            the outputs. `calibrate` finds it.
        metadata: Anything that JSON holds.

    Raises:
        TypeError: Something that is not a `SparseDelta`.
        ValueError: No delta, deltas of different bases, deviations that do not fit, or
            a number out of range.

    Examples:
        >>> from keras_bayestune import SparseDelta
        >>> from keras_bayestune.uncertainty import DeltaPosterior
        >>> def model(bias):
        ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        ...     model.set_weights([np.ones((1, 1)), np.array([bias])])
        ...     return model
        >>> base = model(0.0)
        >>> deltas = [
        ...     SparseDelta.from_checkpoints(base, model(bias)) for bias in (1.0, 3.0)
        ... ]
        >>> posterior = DeltaPosterior(deltas, outputs="values")
        >>> mean, variance = posterior.predict(base, np.zeros((1, 1)), verbose=0)
        >>> mean.tolist(), variance.tolist()
        ([[2.0]], [[1.0]])
        >>> posterior.save("posterior.safetensors")
        >>> len(DeltaPosterior.load("posterior.safetensors").deltas)
        2
    """

    def __init__(
        self,
        deltas: Sequence[SparseDelta],
        deviations: Sequence[Deviations] | None = None,
        *,
        outputs: str = "logits",
        temperature: float = 1.0,
        noise_variance: float = 0.0,
        metadata: Mapping[str, Any] | None = None,
    ):
        self.deltas = checked_deltas(deltas)
        self.deviations = checked_deviations(deviations, self.deltas)
        if outputs not in OUTPUTS:
            raise ValueError(
                f"`outputs` must be one of {OUTPUTS}. Received: outputs={outputs!r}."
            )
        self.outputs = outputs
        self.temperature = check_number("temperature", temperature, "(0, inf)")
        self.noise_variance = check_number("noise_variance", noise_variance, "[0, inf)")
        self.metadata = dict(metadata or {})

    @property
    def is_classification(self) -> bool:
        """Whether predictions are probabilities."""
        return self.outputs != "values"

    def replace(self, **changed: Any) -> "DeltaPosterior":
        """The posterior with some arguments of the constructor changed."""
        arguments = {
            "deltas": self.deltas,
            "deviations": self.deviations,
            "outputs": self.outputs,
            "temperature": self.temperature,
            "noise_variance": self.noise_variance,
            "metadata": self.metadata,
        }
        return DeltaPosterior(**{**arguments, **changed})

    def sample(self, draws: int, seed: int = 0) -> list[SparseDelta]:
        """Draw deltas.

        Args:
            draws: How many, >= 1. Without deviations at most K, the first ones; with
                them the K deltas take turns.
            seed: Int >= 0: the same draws for the same seed.

        Raises:
            ValueError: `draws` or `seed` is out of range.
        """
        return list(self._draws(self._checked_count(draws), seed))

    def _checked_count(self, count: int | None) -> int:
        noisy = any(map(bool, self.deviations))
        if count is None:
            return max(DRAWS, len(self.deltas)) if noisy else len(self.deltas)
        count = check_integer("draws", count, 1)
        if not noisy and count > len(self.deltas):
            raise ValueError(
                f"There are {len(self.deltas)} deltas without deviations, so no more "
                f"draws than these differ. Received: {count} draws."
            )
        return count

    def _draws(self, count: int, seed: int) -> Iterator[SparseDelta]:
        seed = check_integer("seed", seed, 0)
        for number in range(count):
            k = number % len(self.deltas)
            delta, deviations = self.deltas[k], self.deviations[k]
            if not deviations:
                yield delta
                continue
            generator = np.random.default_rng([seed, number])
            variables = dict(delta.variables)
            for path, deviation in deviations.items():
                stored = variables[path]
                noise = deviation * generator.standard_normal(len(deviation))
                values = (stored.new_values.astype(np.float64) + noise).astype(
                    DTYPES[stored.dtype]
                )
                variables[path] = dataclasses.replace(stored, values=values)
            yield SparseDelta(variables, {**delta.metadata, "draw": number})

    def predict(
        self,
        model: keras.Model,
        x: Any,
        draws: int | None = None,
        *,
        batch_size: int = 32,
        seed: int = 0,
        verbose: str | int = "auto",
    ) -> Prediction:
        """Average what the model predicts under draws.

        Costs `draws` passes over `x`, and between two of them the exchange of the
        selected scalars.

        Args:
            model: The base model of the deltas, or tuned to one of them.
            x: Inputs as `predict_on_batch` takes them: arrays in any nesting, or a
                data set of batches that can be read again and again.
            draws: How many; `None` for all deltas, and at least 10 with deviations.
            batch_size: Rows of a batch, for arrays.
            seed: As in `sample`.
            verbose: 0 for no progress bar.

        Raises:
            ValueError: Another base, an iterator, or outputs other than probabilities.
        """
        count = self._checked_count(draws)
        mean = square = np.zeros(())
        with base_lent(model, self.deltas):
            found = outputs_under(
                model, self._draws(count, seed), count, x, batch_size, verbose
            )
            for number, outputs in enumerate(found, start=1):
                values = self._read(outputs)
                change = values - mean
                mean = mean + change / number
                square = square + change * (values - mean)
        if self.is_classification and self.temperature != 1.0:
            mean = tempered(mean, self.temperature)
        return Prediction(mean, square / count + self.noise_variance)

    def _read(self, outputs: np.ndarray) -> np.ndarray:
        if self.outputs == "values":
            return outputs.astype(np.float64)
        if self.outputs == "logits":
            return softmax(outputs)
        p = outputs.astype(np.float64)
        if p.shape[-1] == 1:
            p = np.concatenate([1.0 - p, p], axis=-1)
        # Rows of float16 or bfloat16 add up to 1 only so closely.
        if not (p.min() >= 0 and np.all(np.abs(p.sum(axis=-1) - 1.0) < 0.02)):
            raise ValueError(
                "The model's outputs are not probabilities: received values from "
                f"{p.min():.3g} to {p.max():.3g}. Use outputs='logits' for a model "
                "without an activation at its end, 'values' for a regression."
            )
        return p / p.sum(axis=-1, keepdims=True)

    @property
    def nbytes(self) -> int:
        """Size of the file that `save` would write, in bytes."""
        pieces = document_file.pieces(FORMAT, *to_document(self))
        return sum(map(len, pieces))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file, whole or not at all.

        Args:
            path: The file, by custom `.safetensors`.
        """
        document_file.write(path, FORMAT, *to_document(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "DeltaPosterior":
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: The file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, of another version or of another kind.
        """
        return document_file.read(
            path, FORMAT, lambda *read: cls(**from_document(*read))
        )

    def __repr__(self) -> str:
        kind = "with" if any(map(bool, self.deviations)) else "without"
        return (
            f"<DeltaPosterior of {len(self.deltas)} deltas {kind} deviations, "
            f"outputs={self.outputs!r}, temperature={self.temperature:.3g}>"
        )
