"""Several chains of stage 1: whether they agree, and their average."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bayestune import document_file
from keras_bayestune.arguments import check_integer
from keras_bayestune.callbacks.scale_trace import ScaleTrace
from keras_bayestune.diagnostics import (
    effective_sample_size,
    overlap_matrix,
    r_hat,
    selection_frequency,
)
from keras_bayestune.diagnostics.chain_statistics import arviz
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import unscaled
from keras_bayestune.selectors import ScaleSelector
from keras_bayestune.selectors.scale import chain_optimizer, other_noise

Scores = Mapping[str, np.ndarray]
_NAME = "chains.safetensors"
_FORMAT = document_file.Format(
    "chains",
    version=1,
    writer="run_chains(backup_dir=...)",
    fields={"plan": str, "chains": int, "score": list, "trace": list},
    cure="Put back the right file, or delete it to start anew.",
)


class VariableStatistics(NamedTuple):
    """How well the scales of one variable are known, by those that were followed.

    Attributes:
        r_hat: The largest; near 1 if the chains agree.
        bulk: The least effective sample size of all chains together.
        tail: The same of the quantiles 5 % and 95 %.
    """

    r_hat: float
    bulk: float
    tail: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Chains:
    """What `run_chains` returns.

    Attributes:
        scores: For each chain `{variable path: posterior mean scale}`.
        traces: `{variable path: sampled scales}`, of the scalars that were followed,
            evenly over the variable, shape `(chains, samples, scalars)`.
    """

    scores: tuple[Scores, ...]
    traces: Mapping[str, np.ndarray]

    @property
    def mean_scores(self) -> dict[str, np.ndarray]:
        """The mean over the chains, which `ScaleSelector(chains=K)` returns."""
        return {
            path: np.mean([found[path] for found in self.scores], axis=0)
            for path in self.scores[0]
        }

    def statistics(self) -> dict[str, VariableStatistics]:
        """R-hat and effective sample sizes of each variable, the worst of its scalars.

        Raises:
            ImportError: arviz-stats is not installed.
            ValueError: Fewer than 10 samples.
        """
        return {
            path: VariableStatistics(
                float(np.nanmax(r_hat(draws))),
                float(effective_sample_size(draws, "bulk").min()),
                float(effective_sample_size(draws, "tail").min()),
            )
            for path, draws in self.traces.items()
        }

    def masks(self, fraction: float) -> list[SparseMask]:
        """The mask of each chain by itself."""
        return [SparseMask.from_scores(found, fraction) for found in self.scores]

    def overlap(self, fraction: float) -> np.ndarray:
        """Overlap of each pair of the chains' masks, as `overlap_matrix` has it."""
        return overlap_matrix(self.masks(fraction))

    def selection_probability(self, fraction: float) -> dict[str, np.ndarray]:
        """Fraction of the chains in whose top p each scalar is: its probability."""
        return selection_frequency(self.masks(fraction))

    def __repr__(self) -> str:
        """Return how much was run."""
        samples = next(iter(self.traces.values())).shape[1]
        return f"<{len(self.scores)} chains of {samples} samples>"


def run_chains(
    selector: ScaleSelector,
    model: keras.Model,
    data: Any,
    loss: Any = None,
    *,
    scalars: int = 16,
    backup_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verbose: str | int = "auto",
    **passes: Any,
) -> Chains:
    """Run the chains of a selector one after the other and keep them apart.

    Each starts from the weights that the model has now, with other noise, another
    order of the data and another dropout. One chain that has not mixed is sure of
    itself; that several agree is what no single one can show.

    Cost: `selector.chains` runs of stage 1, a read of the followed scalars in every
    step, 4 bytes per scalar and chain in the host's memory.

    Args:
        selector: A `ScaleSelector(optimizer, ..., chains=K)`.
        model: As in `Selector.scores`; afterwards it is as it was.
        data: As in `Selector.scores`, to be read again and again.
        loss: As in `Selector.scores`.
        scalars: How many scalars of each variable to follow sample by sample.
        backup_dir: Folder for `chains.safetensors`, replaced after each chain and
            deleted at the end. A new process that runs the same script goes on with
            the first chain that is missing; the result is that of a run at one go if
            the order of the data comes from the global generators.
        seed: Int >= 0. Keras's global seed is `seed + k` when chain k, from 0, begins.
        verbose: As in `fit`, for each chain.
        **passes: What else `Selector.scores` takes: `batch_size`, `class_weight`,
            `steps_per_epoch`, `exclude`, `callbacks`.

    Raises:
        ImportError: arviz-stats is not installed.
        TypeError: `selector` is not a `ScaleSelector`.
        ValueError: An argument is out of range, or the state in `backup_dir` is damaged
            or of another run; else as `Selector.scores`.

    Examples:
        >>> import keras_bayestune as kbt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> data = np.random.rand(8, 4), np.random.rand(8, 3)
        >>> plan = {"warmup_steps": 2, "burn_in_steps": 4, "thinning": 1}
        >>> sampling = kbt.BayesTuneSGLD(1e-3, **plan)
        >>> selector = kbt.selectors.ScaleSelector(sampling, steps=14, chains=2)
        >>> chains = kbt.run_chains(selector, model, data, "mse", verbose=0)
        >>> chains
        <2 chains of 10 samples>
        >>> sorted(chains.statistics()) == sorted(v.path for v in model.weights)
        True
        >>> mask = kbt.SparseMask.from_scores(chains.mean_scores, 0.2)
    """
    if not isinstance(selector, ScaleSelector):
        raise TypeError(
            "`selector` must be a ScaleSelector, which says how long a chain is and "
            f"how many there are. Received: {selector!r}."
        )
    scalars = check_integer("scalars", scalars, 1)
    seed = check_integer("seed", seed, 0)
    arviz()  # raises now, not after the chains
    backup = None if backup_dir is None else _Backup(backup_dir, selector, seed)
    scores: list[Scores] = []
    traces: list[Mapping[str, np.ndarray]] = []
    if backup is not None:
        scores, traces = backup.read()
    callbacks = list(passes.pop("callbacks", ()))
    for number in range(len(scores), selector.chains):
        record = _Record(scalars)
        chain = ScaleSelector(
            chain_optimizer(selector.optimizer, number), selector.epochs, selector.steps
        )
        with other_noise(model, number):
            keras.utils.set_random_seed(seed + number)
            found = chain.scores(
                model,
                data,
                loss,
                callbacks=[record, *callbacks],
                verbose=verbose,
                **passes,
            )
        scores.append(found)
        traces.append(record.samples())
        if backup is not None:
            backup.write(scores, traces)
    if backup is not None:
        backup.delete()
    return Chains(
        tuple(scores),
        {path: np.stack([trace[path] for trace in traces]) for path in traces[0]},
    )


class _Record(keras.callbacks.Callback):
    """Follows some scalars of each variable."""

    def __init__(self, scalars: int):
        super().__init__()
        self._scalars = scalars
        self._trace: ScaleTrace | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        optimizer = unscaled(self.model.optimizer)  # on JAX `self.model` syncs it
        if self._trace is None:
            means = optimizer.running_means()
            self._trace = ScaleTrace(means, self._scalars, of_each=True)
        self._trace.record(optimizer)

    def samples(self) -> dict[str, np.ndarray]:
        """Return `{path: (samples, scalars)}`."""
        assert self._trace is not None
        counts = self._trace.counts()
        ends = np.cumsum(list(counts.values()))[:-1]
        parts = np.split(self._trace.samples(), ends, axis=1)
        return dict(zip(counts, parts, strict=True))


class _Backup:
    """The chains that have ended, in one file."""

    def __init__(
        self, folder: str | os.PathLike[str], selector: ScaleSelector, seed: int
    ):
        self._path = Path(folder) / _NAME
        optimizer: Any = selector.optimizer
        plan = [selector.epochs, selector.steps, seed, optimizer.get_config()]
        self._plan = json.dumps(plan, default=str)

    def read(self) -> tuple[list[Scores], list[Mapping[str, np.ndarray]]]:
        if not self._path.exists():
            return [], []
        return document_file.read(self._path, _FORMAT, self._from_document)

    def _from_document(
        self, document: dict[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> tuple[list[Scores], list[Mapping[str, np.ndarray]]]:
        if document["plan"] != self._plan:
            raise ValueError("It is of a run of other chains.")

        def of(kind: str) -> list[Scores]:
            return [
                {p: arrays[f"{kind}.{k}.{i}"] for i, p in enumerate(document[kind])}
                for k in range(document["chains"])
            ]

        return of("score"), of("trace")

    def write(
        self, scores: list[Scores], traces: list[Mapping[str, np.ndarray]]
    ) -> None:
        document = {
            "plan": self._plan,
            "chains": len(scores),
            "score": list(scores[0]),
            "trace": list(traces[0]),
        }
        arrays = {
            f"{kind}.{number}.{i}": array
            for kind, part in (("score", scores), ("trace", traces))
            for number, of_chain in enumerate(part)
            for i, array in enumerate(of_chain.values())
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        document_file.write(self._path, _FORMAT, document, arrays)

    def delete(self) -> None:
        self._path.unlink()
        if not any(self._path.parent.iterdir()):
            self._path.parent.rmdir()
