"""Weights that stage 1 updates as one array, and what is kept for them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bayestune.priors import LaplacePrior
from keras_bayestune.samplers import Metric, Sampler
from keras_bayestune.updates.elementwise import map_arrays
from keras_bayestune.updates.langevin import Moments, Weight
from keras_bayestune.updates.rows import in_a_row, split

Tensor = Any  # a backend tensor
Variables = dict[str, keras.Variable]

# XLA takes a tenth of a second to compile the update of an array, however small, and
# PyTorch a millisecond to run it; two thirds of the weights of a BERT are this small.
SMALL = 1 << 14  # scalars


class Place(NamedTuple):
    """Which weights make a block, and where their noise is drawn."""

    indices: tuple[int, ...]  # among the optimizer's variables
    row: int  # which stream
    start: int  # position of the first scalar in it


@dataclass(frozen=True)
class WeightBlock:
    """A large weight, or small ones of one prior, dtype and weight decay in a row.

    A block's shape is the shape of its weight, or `(n,)` for n scalars in a row.
    """

    place: Place
    weights: tuple[keras.Variable, ...]
    prior: LaplacePrior | None
    decay: float  # weight decay, in units of the learning rate
    anchor: keras.Variable | None = None  # the weights' dtype, the block's shape
    displacement: keras.Variable | None = None  # float32, for narrower weights
    mean: keras.Variable | None = None  # float32
    second_moment: keras.Variable | None = None  # float32, if asked
    slots: Variables = field(default_factory=dict)  # float32, the sampler's or Adam's
    squares: Variables = field(default_factory=dict)  # float32, the metric's
    lines: Variables = field(default_factory=dict)  # those of rows and columns

    @classmethod
    def create(
        cls,
        optimizer: keras.optimizers.Optimizer,
        place: Place,
        weights: Sequence[keras.Variable],
        prior: LaplacePrior | None,
        decay: float,
        sampler: Sampler,
        second_moment: bool,
    ) -> "WeightBlock":
        """Add the variables to `optimizer`; the weights' values become the anchor."""
        first = weights[0]
        shape = tuple(first.shape)
        layout = first._layout
        name = first.path.replace("/", "_")
        if len(weights) > 1:
            shape = (sum(math.prod(weight.shape) for weight in weights),)
            layout = _whole(layout, shape)
            name = f"{name}_and_{len(weights) - 1}_more"

        def add(
            kind: str,
            value: float = 0.0,
            shape: tuple[int, ...] = shape,
            layout: Any = layout,
        ) -> keras.Variable:
            return optimizer.add_variable(
                shape=shape,
                initializer=keras.initializers.Constant(value),
                dtype="float32",
                layout=layout,
                name=f"{name}_{kind}",
            )

        if prior is None:
            slots = {kind: add(kind) for kind in ("momentum", "velocity")}
            return cls(place, tuple(weights), None, decay, slots=slots)
        # A copy: on JAX two variables must not share a donated buffer. A sharded
        # weight's comes afterwards: Keras 3.15 compiles the initializer of a large one,
        # and would put the whole weight into the program.
        anchor = optimizer.add_variable(
            shape=shape,
            initializer=(
                "zeros" if layout else lambda shape, dtype: ops.copy(in_a_row(weights))
            ),
            dtype=first.dtype,
            layout=layout,
            name=f"{name}_anchor",
        )
        if layout:
            anchor.assign(ops.copy(in_a_row(weights)))
        narrow = keras.backend.standardize_dtype(first.dtype) in ("float16", "bfloat16")
        kept = sampler.metric.initial_state(shape)
        return cls(
            place,
            tuple(weights),
            prior,
            decay,
            anchor=anchor,
            displacement=add("displacement") if narrow else None,
            mean=add("scale_mean"),
            second_moment=add("scale_second_moment") if second_moment else None,
            slots={
                kind: add(kind, value)
                for kind, value in sampler.initial_slots(prior).items()
            },
            squares={k: add(k) for k, s in kept.items() if s == shape},
            lines={
                k: add(k, shape=s, layout=_whole(layout, s))
                for k, s in kept.items()
                if s != shape
            },
        )

    def gradient(self, given: Mapping[int, Tensor]) -> Tensor | None:
        """Return the gradient in the block's shape, 0 where none was given.

        Args:
            given: Gradients by the weight's index.
        """
        found = [given.get(i) for i in self.place.indices]
        if all(gradient is None for gradient in found):
            return None
        return in_a_row(
            [
                ops.zeros(weight.shape, "float32") if gradient is None else gradient
                for gradient, weight in zip(found, self.weights, strict=True)
            ]
        )

    def weight(self) -> Weight:
        """Return what an update moves."""
        return Weight(
            value=in_a_row(self.weights),
            displacement=_tensor(self.displacement),
            slots=_tensors(self.slots),
            squares=_tensors(self.squares),
        )

    def moments(self) -> Moments:
        """Return the running means of the score."""
        return Moments(_tensor(self.mean), _tensor(self.second_moment))

    def changes(self, new: Weight) -> list[tuple[keras.Variable, Tensor]]:
        """Return what to assign to which variable so that `new` is stored."""
        pairs = list(zip(self.weights, split(new.value, self.shapes), strict=True))
        if self.displacement is not None:
            pairs.append((self.displacement, new.displacement))
        pairs += [(self.slots[name], slot) for name, slot in new.slots.items()]
        return pairs + [(self.squares[name], a) for name, a in new.squares.items()]

    def moment_variables(self) -> list[keras.Variable]:
        """Return the variables of `moments`, without those that are not kept."""
        return [v for v in (self.mean, self.second_moment) if v is not None]

    def line_state(self) -> dict[str, Tensor]:
        """Return what the metric keeps of rows and columns."""
        return _tensors(self.lines)

    def num_without_gradient(self) -> int | None:
        """Return how many scalars had none until burn-in ended, if that is kept."""
        kept = [*self.squares.values(), *self.lines.values()]
        if not kept or self.anchor is None:
            return None
        counts = [np.count_nonzero(ops.convert_to_numpy(array)) for array in kept]
        return math.prod(self.anchor.shape) - math.prod(counts)

    def num_scalars(self, given: Mapping[int, Tensor]) -> float:
        """Return of how many scalars a gradient was given."""
        pairs = zip(self.place.indices, self.weights, strict=True)
        return float(sum(math.prod(w.shape) for i, w in pairs if i in given))

    def reset_anchor(self) -> None:
        """Make the weights' present values the anchor."""
        assert self.anchor is not None
        self.anchor.assign(ops.copy(in_a_row(self.weights)))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each weight."""
        return [tuple(weight.shape) for weight in self.weights]

    def kept(self, arrays: Any, given: Mapping[int, Tensor]) -> Any:
        """Return copies for `restored`, `None` if every weight has a gradient."""
        if all(i in given for i in self.place.indices):
            return None
        return map_arrays(ops.copy, arrays)

    def restored(self, new: Any, kept: Any, given: Mapping[int, Tensor]) -> Any:
        """Return nested arrays `new`, with `kept` where a weight has no gradient."""
        if kept is None:
            return new

        def restore(new: Tensor, old: Tensor) -> Tensor:
            pair = split(new, self.shapes), split(old, self.shapes)
            parts = zip(self.place.indices, *pair, strict=True)
            return in_a_row([one if i in given else other for i, one, other in parts])

        return map_arrays(restore, new, kept)


def places_of(
    weights: Sequence[keras.Variable],
    priors: Sequence[LaplacePrior | None],
    decays: Sequence[float],
    metric: Metric,
) -> list[Place]:
    """Return the blocks.

    A row is a large weight, or all small ones of one prior, dtype and weight decay. A
    weight that is sharded over devices makes a block of its own, but its noise has the
    place in the row that it would have on one device.
    """
    rows: dict[Any, list[int]] = {}
    kinds = zip(weights, priors, decays, strict=True)
    for i, (weight, prior, decay) in enumerate(kinds):
        kind: Any = i
        if math.prod(weight.shape) < SMALL and not metric.per_tensor:
            dtype = keras.backend.standardize_dtype(weight.dtype)
            kind = (prior, dtype, decay)
        rows.setdefault(kind, []).append(i)
    places = []
    under_prior = sorted(rows.values(), key=lambda row: priors[row[0]] is None)
    for number, row in enumerate(under_prior):
        start, found = 0, Place((), number, 0)
        for i in row:
            if _is_sharded(weights[i]):
                places += [found, Place((i,), number, start)]
                found = Place((), number, start + math.prod(weights[i].shape))
            else:
                found = found._replace(indices=(*found.indices, i))
            start += math.prod(weights[i].shape)
        places.append(found)
    return [place for place in places if place.indices]


def _is_sharded(weight: keras.Variable) -> bool:
    layout = weight._layout
    return layout is not None and any(axis is not None for axis in layout.axes)


def _tensor(variable: keras.Variable | None) -> Tensor | None:
    return None if variable is None else ops.convert_to_tensor(variable)


def _tensors(variables: Variables) -> dict[str, Tensor]:
    return {name: ops.convert_to_tensor(v) for name, v in variables.items()}


def _whole(layout: Any, shape: tuple[int, ...]) -> Any:
    """Return the layout of an array that every device has as a whole."""
    if layout is None:
        return None
    return keras.distribution.TensorLayout([None] * len(shape), layout.device_mesh)
