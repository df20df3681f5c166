# Over 300 lines: one value with its docstrings; the algorithms are next door.
"""The mask: which scalars of a model are selected."""

import dataclasses
import math
import os
import sys
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TextIO

import keras
import numpy as np

from keras_bayestune import document_file
from keras_bayestune.budgets import Budget
from keras_bayestune.masks import fields
from keras_bayestune.masks.choice import choose
from keras_bayestune.masks.file import FORMAT, fields_of, pack, unpack, write
from keras_bayestune.masks.overlap import overlap_coefficient
from keras_bayestune.masks.proportion import proportion
from keras_bayestune.masks.summary import print_summary
from keras_bayestune.matching import match_paths
from keras_bayestune.paths import variables_by_path


@keras.saving.register_keras_serializable(package="keras_bayestune")
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseMask:
    """The selected scalars of a model: a value that does not change.

    Made by `from_scores` or `load`; the constructor takes known indices. Two masks
    are equal if they select the same scalars of variables with equal paths and
    shapes, and take the same variables whole.

    Args:
        indices: `{variable path: flat indices}`, C order, strictly ascending. Every
            path of `shapes` is there, with an empty array where nothing is selected.
        shapes: `{variable path: shape}`.
        always: Paths of variables that are taken whole, outside the budget.
        mean_scores: `{variable path: mean score}` for `summary`; any of the paths.
        candidates: Fractions at which the curve of sorted scores bends.

    Raises:
        TypeError: Indices are not integers.
        ValueError: Indices out of range, unsorted or repeated; paths that differ
            between the arguments; a variable of `always` that is not whole.

    Examples:
        >>> import numpy as np
        >>> from keras_bayestune import SparseMask
        >>> scores = {"dense/kernel": np.array([[0.1, 0.9], [0.7, 0.2]])}
        >>> mask = SparseMask.from_scores(scores, fraction=0.5)
        >>> mask.indices["dense/kernel"].tolist()
        [1, 2]
        >>> mask.count, mask.size, mask.fraction
        (2, 4, 0.5)
    """

    indices: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    _: dataclasses.KW_ONLY
    always: tuple[str, ...] = ()
    mean_scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    candidates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        shapes = {
            path: fields.checked_shape(path, s) for path, s in self.shapes.items()
        }
        if not shapes:
            raise ValueError("A mask needs at least one variable. Received no shapes.")
        if set(self.indices) != set(shapes):
            raise ValueError(
                "`indices` and `shapes` must have the same paths. Only in one of them: "
                f"{sorted(set(self.indices) ^ set(shapes))[:5]}."
            )
        indices = {
            path: fields.checked_indices(path, self.indices[path], math.prod(shape))
            for path, shape in shapes.items()
        }
        values = {
            "indices": MappingProxyType(indices),
            "shapes": MappingProxyType(shapes),
            "always": fields.checked_always(self.always, indices, shapes),
            "mean_scores": MappingProxyType(
                fields.checked_means(self.mean_scores, shapes)
            ),
            "candidates": fields.checked_fractions(self.candidates),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def count(self) -> int:
        """Number of selected scalars."""
        return sum(map(len, self.indices.values()))

    @property
    def size(self) -> int:
        """Number of scalars, selected or not."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def fraction(self) -> float:
        """Fraction of the scalars that is selected, `count / size`."""
        return self.count / self.size if self.size else 0.0

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[str, Any],
        fraction: float | str | None = None,
        threshold: float | None = None,
        budget: Budget | None = None,
        always: Iterable[str] | Mapping[str, tuple[int, ...]] = (),
    ) -> "SparseMask":
        """Select the scalars with the largest scores, of all variables together.

        Kim & Hospedales, "BayesTune", NeurIPS 2023, section 3.3. Of `n` scalars that
        compete, exactly `floor(fraction * n)` are selected, the largest first; equal
        scores go by path in sorted order, then by flat index. `budget` divides that
        number.

        Args:
            scores: `{variable path: array of the variable's shape}`, any float type.
            fraction: Fraction of the competing scalars, in (0, 1], or `"auto"`: the
                knee of the sorted scores, see `keras_bayestune.knee.find_knees`.
            threshold: Choose the scores above this number instead.
            budget: Who competes with whom, one of `keras_bayestune.budgets`:
                `PerTensor()`, `PerLayer()`, `PerNeuron()`, `ByPattern({regex:
                fraction})`; `None` for `Global()`.
            always: Paths to take whole, outside the budget, whatever their scores;
                `{path: shape}` for variables without scores.

        Raises:
            TypeError: An argument of the wrong type; scores that are not floats.
            ValueError: Not exactly one of `fraction` and `threshold`; NaN or infinite
                scores; nothing selected; all scores equal; an unknown path or a regex
                of the budget that matches nothing.

        Examples:
            >>> import numpy as np
            >>> from keras_bayestune import SparseMask
            >>> scores = {"a/kernel": np.arange(6.0), "b/kernel": np.arange(4.0)}
            >>> mask = SparseMask.from_scores(scores, 0.5, always={"head/bias": (2,)})
            >>> {path: found.tolist() for path, found in mask.indices.items()}
            {'a/kernel': [2, 3, 4, 5], 'b/kernel': [3], 'head/bias': [0, 1]}
        """
        return cls(**choose(scores, fraction, threshold, budget, always))

    def match(self, variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
        """Indices by the paths of these variables, which may be numbered anew.

        Args:
            variables: Keras variables of a model, those of the mask among them.

        Returns:
            `{path: sorted flat indices}` for each variable of the mask, with the
            paths that `keras_bayestune.paths.variable_paths` gives them. Variables
            that the mask does not know are left out.

        Raises:
            ValueError: The mask is for another model, or the match is ambiguous.

        Examples:
            >>> import keras, numpy as np
            >>> from keras_bayestune import SparseMask
            >>> mask = SparseMask({"logits/kernel": [0, 5]}, {"logits/kernel": (3, 2)})
            >>> layer = keras.layers.Dense(2, name="logits", use_bias=False)
            >>> layer.build((None, 3))
            >>> mask.match(layer.variables)
            {'logits/kernel': array([0, 5], dtype=int32)}
        """
        partners = self._partners(variables)
        return {here: self.indices[saved] for saved, here in partners.items()}

    def in_order_of(self, variables: Iterable[keras.Variable]) -> "SparseMask":
        """Return the mask with its variables in the order that they have here.

        A mask that is saved with a model, or beside it, needs the model's order: where
        Keras changes paths when it loads the model, the order tells which is which.

        Args:
            variables: As in `match`.

        Raises:
            ValueError: As `match`.
        """
        saved = {here: path for path, here in self._partners(variables).items()}
        order = [saved[path] for path in variables_by_path(variables) if path in saved]
        if order == list(self.shapes):
            return self
        return SparseMask(
            {path: self.indices[path] for path in order},
            {path: self.shapes[path] for path in order},
            always=self.always,
            mean_scores=self.mean_scores,
            candidates=self.candidates,
        )

    def _partners(self, variables: Iterable[keras.Variable]) -> dict[str, str]:
        """`{path in the mask: path here}`."""
        present = variables_by_path(variables)
        try:
            return match_paths(
                self.shapes, {path: tuple(v.shape) for path, v in present.items()}
            )
        except ValueError as error:
            raise ValueError(f"The mask is for another model. {error}") from error

    def overlap(self, other: "SparseMask") -> float:
        """Overlap coefficient `|A and B| / min(|A|, |B|)` of the selected scalars.

        Variables that one of the masks takes whole (`always`) did not compete and are
        left out. 1: the smaller mask lies within the larger; random masks overlap by
        the fraction of the larger.

        Args:
            other: Mask of the same model.

        Raises:
            TypeError: `other` is not a mask.
            ValueError: The masks belong to different models, or one of them has no
                selected scalar among those that competed in both.

        Examples:
            >>> from keras_bayestune import SparseMask
            >>> one = SparseMask({"kernel": [0, 1, 2]}, {"kernel": (4,)})
            >>> two = SparseMask({"kernel": [2, 3]}, {"kernel": (4,)})
            >>> one.overlap(two)
            0.5
        """
        if not isinstance(other, SparseMask):
            raise TypeError(f"`other` must be a SparseMask. Received: {other!r:.80}.")
        return overlap_coefficient(self, other)

    def summary(self, file: TextIO | None = None) -> None:
        """Print a table: per layer, how many scalars are selected and the mean score.

        A layer is a variable's path up to its last "/".

        Args:
            file: Where to print; standard output if None. A terminal gets a coloured
                table, anything else plain text.

        Examples:
            >>> from keras_bayestune import SparseMask
            >>> mask = SparseMask({"a/kernel": [0], "b/bias": []},
            ...                   {"a/kernel": (2, 2), "b/bias": (4,)})
            >>> mask.summary()
            layer  scalars  selected  fraction  mean score
            a            4         1   25.00 %           -
            b            4         0    0.00 %           -
            total        8         1   12.50 %           -
        """
        print_summary(self, sys.stdout if file is None else file)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask to a safetensors file, whole or not at all.

        Args:
            path: Where to write; an existing file is replaced.

        Examples:
            >>> from keras_bayestune import SparseMask
            >>> mask = SparseMask({"kernel": [0, 5]}, {"kernel": (3, 2)})
            >>> mask.save("mask.safetensors")
            >>> SparseMask.load("mask.safetensors") == mask
            True
        """
        write(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SparseMask":
        """Read a mask that `save` wrote.

        Args:
            path: The file.

        Raises:
            ValueError: The file is damaged, of another kind, or of a newer version.
        """
        return document_file.read(path, FORMAT, lambda *read: cls(**fields_of(*read)))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, the indices as compressed text."""
        return {
            "indices": {path: pack(found) for path, found in self.indices.items()},
            "shapes": {path: list(shape) for path, shape in self.shapes.items()},
            "always": list(self.always),
            "mean_scores": dict(self.mean_scores),
            "candidates": list(self.candidates),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SparseMask":
        """Rebuild from `get_config()`."""
        indices = {path: unpack(path, data) for path, data in config["indices"].items()}
        return cls(**{**config, "indices": indices})

    def __eq__(self, other: object) -> bool:
        """Compare the selected scalars, the shapes and what is taken whole."""
        if not isinstance(other, SparseMask):
            return NotImplemented
        return (
            self.shapes == other.shapes
            and set(self.always) == set(other.always)
            and all(
                np.array_equal(flat_indices, other.indices[path])
                for path, flat_indices in self.indices.items()
            )
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy through the config: read-only mappings cannot be copied."""
        return SparseMask.from_config, (self.get_config(),)

    def __repr__(self) -> str:
        """Show how much is selected."""
        counts = {path: len(found) for path, found in self.indices.items()}
        return f"SparseMask({proportion(counts, self.shapes, self.always)})"
