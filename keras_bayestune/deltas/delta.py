# Over 300 lines: one value object with its file, its algebra and their docstrings.
"""The delta: the few scalars that a task changes in a model, as a value and a file."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras

from keras_bayestune import document_file
from keras_bayestune.arguments import check_number
from keras_bayestune.deltas import displacements
from keras_bayestune.deltas.applications import Applications
from keras_bayestune.deltas.capture import capture
from keras_bayestune.deltas.checkpoints import Checkpoint, compare
from keras_bayestune.deltas.file import FORMAT, from_document, to_document
from keras_bayestune.deltas.narrowing import narrow
from keras_bayestune.deltas.variable import VariableDelta, fingerprint
from keras_bayestune.masks import SparseMask
from keras_bayestune.masks.proportion import proportion


class SparseDelta:
    """What a task changed in a model: indices and new values, a few MB.

    A delta holds the *new values* of the selected scalars, so applying it gives the
    tuned model bit for bit, and marks by which it knows its base. It does not hold
    the base values. Its algebra works on displacements, `new - base`, so it needs
    them: `from_model` and `from_checkpoints` keep them in memory, and after `load`
    `bind(model)` reads them from the base model. The result of the algebra is an
    ordinary delta again, with values rounded to the variable's dtype.

    A delta is a value: its arrays are read-only, and operations return new ones. Which
    models it is applied to is not part of the value.

    Args:
        variables: What is stored of each floating variable of the model, by path.
        metadata: Anything that JSON holds: task, metrics, selector, sampler.

    Examples:
        >>> from keras_bayestune import SparseDelta, SparseMask
        >>> layer = keras.layers.Dense(2, use_bias=False)
        >>> model = keras.Sequential([keras.Input((2,)), layer])
        >>> path, base = layer.kernel.path, np.eye(2, dtype="float32")
        >>> mask = SparseMask({path: [1]}, {path: (2, 2)})
        >>> model.set_weights([np.array([[1.0, 0.5], [0.0, 1.0]])])
        >>> delta = SparseDelta.from_model(model, mask=mask, base={path: base})
        >>> delta.save("task.safetensors")

        >>> model.set_weights([base])
        >>> delta = SparseDelta.load("task.safetensors")
        >>> with delta.applied(model):
        ...     model.get_weights()[0].tolist()
        [[1.0, 0.5], [0.0, 1.0]]
        >>> (delta.bind(model) * 0.5).variables[path].values.tolist()
        [0.25]
    """

    def __init__(
        self,
        variables: Mapping[str, VariableDelta],
        metadata: Mapping[str, Any] | None = None,
    ):
        if not variables:
            raise ValueError("A delta needs at least one variable. Received none.")
        self._variables = dict(variables)
        self._metadata = dict(metadata or {})
        self._applications = Applications()

    @classmethod
    def from_model(
        cls,
        model: keras.Model,
        callback: Any = None,
        *,
        mask: SparseMask | None = None,
        base: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "SparseDelta":
        """Take the selected scalars of a tuned model.

        Stored are the selected scalars, the variables that the mask always takes (a
        fresh head) as a whole, and non-trainable statistics that changed since `base`
        (a batch normalisation's), without which the outputs would differ. Random
        seeds are not.

        Args:
            model: The model after tuning.
            callback: A `SparseMaskCallback` whose stage 1 is over: gives mask, base
                values (`anchors`) and metadata.
            mask: Instead of `callback`: the mask.
            base: Instead of `callback`: `base_values(model)`, taken before tuning.
                Needed are the variables in the mask that it does not take whole, and
                non-trainable statistics of layers that are not frozen.
            metadata: Added to the callback's.

        Raises:
            ValueError: Neither or both of `callback` and `mask` with `base`; no mask
                yet; mask or base of another model; a base value is missing; a scalar
                outside the mask moved.
        """
        if (callback is None) == (mask is None and base is None):
            raise ValueError(
                "Pass either the callback, `from_model(model, callback)`, or `mask=` "
                "with `base=`."
            )
        if callback is not None:
            mask, base = callback.mask, callback.anchors
            metadata = {**callback.metadata, **(metadata or {})}
        if mask is None or base is None:
            raise ValueError(
                "There is no mask or no base to make a delta of: received "
                f"mask={type(mask).__name__}, base={type(base).__name__}. With a "
                "callback, let its stage 1 end first; without, pass both."
            )
        return cls(capture(model, mask, base), metadata)

    @classmethod
    def from_checkpoints(
        cls,
        base: Checkpoint,
        tuned: Checkpoint,
        fraction: float | None = None,
        *,
        always: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> "SparseDelta":
        """Take the largest differences between two checkpoints of one model.

        Of the trainable scalars those with the largest `|tuned - base|` are kept,
        with their tuned values; the others stay at the base, so with a `fraction` the
        delta only approximates the tuned model. Its metadata say how much of the
        squared difference it keeps. Non-trainable statistics that changed are stored
        whole.

        Args:
            base: The model before tuning, or its `.keras` file.
            tuned: The model after tuning, or its `.keras` file.
            fraction: Fraction of the trainable scalars to keep, in (0, 1]; None keeps
                every scalar that changed, which reproduces `tuned` bit for bit.
            always: Paths in `base` to store whole (a fresh head).
            metadata: Added to the delta's own.

        Raises:
            ValueError: Different architectures or dtypes, an unknown path in
                `always`, a file that is not `.keras`, or `fraction` out of range.

        Examples:
            >>> from keras_bayestune.deltas import SparseDelta
            >>> base = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
            >>> tuned = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
            >>> kernel, bias = base.get_weights()
            >>> tuned.set_weights([kernel + [[0.0, 3.0]], bias + [-2.0, 1.0]])
            >>> delta = SparseDelta.from_checkpoints(base, tuned, fraction=0.5)
            >>> [v.flat_indices.tolist() for v in delta.variables.values()]
            [[1], [0]]
            >>> round(delta.metadata["kept_squared_difference"], 3)
            0.929
        """
        variables, facts = compare(base, tuned, fraction, always)
        return cls(variables, {**facts, **(metadata or {})})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SparseDelta":
        """Read a delta file; see `docs/delta-format.md`.

        Every byte is covered by a digest, and no memory is allocated for a size that
        the file only claims.

        Args:
            path: A file that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is damaged, of another version, or no delta.
        """
        return document_file.read(
            path, FORMAT, lambda *read: cls(*from_document(*read))
        )

    def save(self, path: str | os.PathLike[str], dtype: str | None = None) -> None:
        """Write the delta to one file, whole or not at all.

        Args:
            path: The file, by custom `.safetensors`.
            dtype: Narrows the values, see `astype`. None keeps every bit.

        Raises:
            ValueError: `dtype` is unknown or too narrow, or `metadata` is not JSON.
            FileNotFoundError: The folder does not exist.
        """
        delta = self if dtype is None else self.astype(dtype)
        document_file.write(path, FORMAT, *to_document(delta.variables, delta.metadata))

    def astype(self, dtype: str) -> "SparseDelta":
        """The delta with values in fewer bits, and the error that this makes.

        `metadata["rounding"]` holds the largest error, absolute and relative to the
        value. Base marks stay: the base is as it was. Whole variables are narrowed
        too, variables of the dtype or a narrower one stay as they are.

        Args:
            dtype: `"bfloat16"`, `"float16"`, `"float32"` or `"float64"`.

        Raises:
            ValueError: An unknown dtype, or a value beyond its range.

        Examples:
            >>> from keras_bayestune.deltas import SparseDelta
            >>> base = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            >>> tuned = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            >>> tuned.set_weights([base.get_weights()[0], np.array([1.001])])
            >>> delta = SparseDelta.from_checkpoints(base, tuned).astype("bfloat16")
            >>> error = delta.metadata["rounding"]["max_absolute"]
            >>> f"{error:.4f}"
            '0.0010'
        """
        variables, rounding = narrow(self._variables, dtype)
        if all(variables[path] is v for path, v in self._variables.items()):
            return self
        return SparseDelta(variables, {**self._metadata, "rounding": rounding})

    def apply(self, model: keras.Model) -> None:
        """Write the new values into a model that holds the base.

        Everything is checked before the first write: the set of variables, shapes,
        dtypes and, by checksum, every value of the base (read one variable at a
        time). Kept in memory are the old values of the changed scalars only. Where
        many deltas take turns, or threads share the model, use `DeltaSet`.

        Args:
            model: The base model, of any backend; automatic names may be numbered
                differently (`dense_3` for `dense`).

        Raises:
            ValueError: Applied already, another base, a missing, extra or reshaped
                variable, another dtype, or a quantised model. The model is unchanged.
        """
        self._applications.apply(self._variables, model)

    def revert(self, model: keras.Model) -> None:
        """Restore the values that `apply` replaced, bit for bit.

        If the base weights were loaded in between, there is nothing to restore.

        Args:
            model: A model that this delta was applied to.

        Raises:
            ValueError: Not applied to this model, or the changed scalars hold neither
                the delta's values nor the base's (the model was trained on), or are
                no longer in it (it was quantised, layers were exchanged).
        """
        self._applications.revert(model)

    @contextlib.contextmanager
    def applied(self, model: keras.Model) -> Iterator[keras.Model]:
        """`with delta.applied(model):` calls `apply`, and `revert` at the end."""
        self.apply(model)
        try:
            yield model
        finally:
            self.revert(model)

    def bind(self, model: keras.Model) -> "SparseDelta":
        """The delta with the base values at its indices, which algebra needs.

        Args:
            model: The base model. Where this delta is applied to it, the values it
                replaced are used.

        Raises:
            ValueError: The model is not the base.
        """
        variables = self._applications.bound(self._variables, model)
        return SparseDelta(variables, self._metadata)

    def without(self, paths: Iterable[str]) -> "SparseDelta":
        """The delta without some variables.

        A variable with selected indices then keeps its base values; one stored
        whole (a head) is left as the model has it.

        Args:
            paths: Variable paths of this delta.

        Raises:
            ValueError: A path that the delta does not have.
        """
        paths = set(paths)
        unknown = sorted(paths - set(self._variables))
        if unknown:
            raise ValueError(
                f"The delta has no variable {unknown[:3]}. Its paths are the keys of "
                "`delta.variables`."
            )
        variables = {
            path: stored.emptied() if path in paths else stored
            for path, stored in self._variables.items()
        }
        return SparseDelta(variables, self._metadata)

    def __mul__(self, factor: float) -> "SparseDelta":
        """The delta with displacements multiplied by a finite number.

        `new = base + factor * (new - base)`, computed in float64 and rounded once. In
        variables up to float32, a factor of 1 keeps every bit (but the sign of a new
        -0.0) and a factor of 0 restores every bit of the base. Variables stored whole
        stay as they are: their base is no part of the delta.
        """
        factor = check_number("factor", factor, "(-inf, inf)")
        return _weighted([self], [factor], rule="scale", factor=factor)

    __rmul__ = __mul__

    def __neg__(self) -> "SparseDelta":
        return self * -1.0

    def __add__(self, other: "SparseDelta") -> "SparseDelta":
        if not isinstance(other, SparseDelta):
            return NotImplemented
        return _weighted([self, other], [1.0, 1.0], rule="add")

    def __sub__(self, other: "SparseDelta") -> "SparseDelta":
        if not isinstance(other, SparseDelta):
            return NotImplemented
        return _weighted([self, other], [1.0, -1.0], rule="subtract")

    @property
    def variables(self) -> Mapping[str, VariableDelta]:
        """What is stored of each floating variable, by path."""
        return MappingProxyType(self._variables)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Task, metrics, selector, sampler: what the maker put in."""
        return MappingProxyType(self._metadata)

    @property
    def count(self) -> int:
        """Number of stored scalars, those of whole variables included."""
        return sum(len(v.values) for v in self._variables.values())

    @property
    def size(self) -> int:
        """Number of floating scalars of the model."""
        return sum(v.size for v in self._variables.values())

    @property
    def fraction(self) -> float:
        """`count / size`."""
        return self.count / self.size

    @property
    def nbytes(self) -> int:
        """Size of the file that `save` would write, in bytes."""
        return sum(map(len, self._pieces()))

    @property
    def fingerprint(self) -> str:
        """Name of the base: equal for deltas of one base, whatever they select."""
        return fingerprint(self._variables.values())

    def __eq__(self, other: object) -> bool:
        """Whether indices, values (bits), base and metadata are equal."""
        if not isinstance(other, SparseDelta):
            return NotImplemented
        return [*self._pieces()] == [*other._pieces()]

    __hash__ = None  # type: ignore[assignment]

    def _pieces(self) -> Iterator[Any]:
        return document_file.pieces(
            FORMAT, *to_document(self._variables, self._metadata)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy knows nothing of the models that this one is applied to.
        return SparseDelta, (self._variables, self._metadata)

    def __repr__(self) -> str:
        stored = self._variables.items()
        text = proportion(
            {path: len(v.values) for path, v in stored},
            {path: v.shape for path, v in stored},
            [path for path, v in stored if v.is_whole],
        )
        return f"<SparseDelta {text}; base {self.fingerprint}>"


def _weighted(
    deltas: Sequence[SparseDelta], weights: Sequence[float], **rule: Any
) -> SparseDelta:
    variables = displacements.combine(
        [delta.variables for delta in deltas], displacements.weighted_sum(weights)
    )
    metadata = displacements.provenance([delta.metadata for delta in deltas], **rule)
    return SparseDelta(variables, metadata)
