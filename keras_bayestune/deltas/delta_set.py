"""Many deltas on one model, taking turns."""

import contextlib
import os
import threading
from collections.abc import Iterator

import keras
import numpy as np

from keras_bayestune.deltas import swap
from keras_bayestune.deltas.delta import SparseDelta
from keras_bayestune.deltas.model_variables import (
    Target,
    check_still_there,
    floating_variables,
    pair_with_model,
)


class DeltaSet:
    """Several deltas on one base model, of which at most one is active.

    The whole base is read once, for its checksums, and every delta is checked against
    them when it is added. From then on `activate` costs time and memory of the
    selected scalars: it restores the old ones, checking that nobody changed them, and
    writes the new ones. The model is never copied.

    Threads: every method takes one lock, so activations do not mix. A forward pass
    does not take it: where several threads serve one model, each runs its forward
    pass inside `with tasks.using(name):`, which holds the lock until the block ends.
    Change the weights by no other means while a delta is active.

    Args:
        model: The base model, with no delta applied.

    Raises:
        ValueError: The model is quantised or has no weights.

    Examples:
        >>> import keras
        >>> from keras_bayestune.deltas import DeltaSet, SparseDelta
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> tuned = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> tuned.set_weights([weight + 1.0 for weight in model.get_weights()])
        >>> tasks = DeltaSet(model)
        >>> tasks.add("rte", SparseDelta.from_checkpoints(model, tuned))
        >>> tasks.activate("rte")
        >>> tasks.active, model.get_weights()[1].tolist()
        ('rte', [1.0, 1.0])
        >>> tasks.deactivate()
        >>> model.get_weights()[1].tolist()
        [0.0, 0.0]
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._variables = list(floating_variables(model).values())
        self._checksums = {id(v): swap.variable_checksum(v) for v in self._variables}
        self._targets: dict[str, list[Target]] = {}
        self._deltas: dict[str, SparseDelta] = {}
        self._active: str | None = None
        self._old: list[np.ndarray] = []
        self._lock = threading.RLock()

    def add(self, name: str, delta: SparseDelta | str | os.PathLike[str]) -> None:
        """Add a delta, or the file of one; whatever is active stays so.

        Args:
            name: How to call it.
            delta: A delta of this base, or a path that `SparseDelta.load` reads.

        Raises:
            ValueError: The name is taken, the delta is of another base, or the file
                is damaged.
        """
        if not isinstance(delta, SparseDelta):
            delta = SparseDelta.load(delta)
        with self._lock:
            if name in self._targets:
                raise ValueError(
                    f"There is a delta {name!r} already. Remove it first, or choose "
                    "another name."
                )
            targets = pair_with_model(delta.variables, self.model)
            check_still_there(self.model, self._variables)
            swap.check_base(targets, lambda variable: self._checksums[id(variable)])
            self._targets[name] = targets
            self._deltas[name] = delta

    def remove(self, name: str) -> None:
        """Forget a delta; if it is active, the base is restored first.

        Args:
            name: A delta of this set.

        Raises:
            ValueError: There is no such delta.
        """
        with self._lock:
            self._check_name(name)
            if self._active == name:
                self.deactivate()
            del self._targets[name], self._deltas[name]

    def activate(self, name: str) -> None:
        """Turn the model into that of one task.

        Args:
            name: A delta of this set.

        Raises:
            ValueError: There is no such delta, the weights were changed while
                another was active, or the model was quantised or its layers exchanged.
        """
        with self._lock:
            self._check_name(name)
            if self._active == name:
                return
            self.deactivate()
            self._check_targets(name)
            self._old = swap.swap_in(self._targets[name])
            self._active = name

    def deactivate(self) -> None:
        """Restore the base bit for bit; do nothing if no delta is active.

        Raises:
            ValueError: The changed scalars hold neither the delta's values nor the
                base's: load the base weights, and it succeeds. Or the model was
                quantised, or its layers exchanged.
        """
        with self._lock:
            if self._active is not None:
                self._check_targets(self._active)
                swap.swap_out(self._targets[self._active], self._old)
                self._active, self._old = None, []

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[keras.Model]:
        """`with tasks.using("rte") as model:` holds the lock for the whole block.

        At the end, what was active before is active again.

        Args:
            name: A delta of this set; None for the base.

        Raises:
            ValueError: As `activate` and `deactivate`.
        """
        with self._lock:
            before = self._active
            self._switch(name)
            try:
                yield self.model
            finally:
                self._switch(before)

    def _switch(self, name: str | None) -> None:
        if name is None:
            self.deactivate()
        else:
            self.activate(name)

    def _check_targets(self, name: str) -> None:
        check_still_there(self.model, [t.variable for t in self._targets[name]])

    def _check_name(self, name: str) -> None:
        if name not in self._targets:
            raise ValueError(
                f"There is no delta {name!r}. Those of this set are: {list(self)}."
            )

    @property
    def active(self) -> str | None:
        """Name of the active delta; None for the base."""
        return self._active

    def __repr__(self) -> str:
        return (
            f"<DeltaSet of {list(self)} on {self.model.name!r}, active: "
            f"{self._active!r}>"
        )

    def __getitem__(self, name: str) -> SparseDelta:
        self._check_name(name)
        return self._deltas[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._targets))

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, name: object) -> bool:
        return name in self._targets
