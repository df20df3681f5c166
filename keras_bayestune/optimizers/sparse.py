# Over 300 lines: one optimizer; a third of it is docstrings and delegation.
"""Stage 2: any Keras optimizer, on the selected scalars only."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers.arguments import check_inner
from keras_bayestune.optimizers.state import (
    RunState,
    checked_state,
    is_foreign,
    save_owner,
)
from keras_bayestune.updates.replicas import (
    creation_scope,
    dense_gradients,
    holds_on_all,
    update_each,
)
from keras_bayestune.updates.selected import gather, resynced, scatter, write
from keras_bayestune.updates.skip import apply_if

Tensor = Any  # a backend tensor


@keras.saving.register_keras_serializable(package="keras_bayestune")
class SparseOptimizer(keras.optimizers.Optimizer):
    """Run any Keras optimizer on the selected scalars only.

    Stage 2 of BayesTune (Kim & Hospedales, NeurIPS 2023, section 3.3). For each
    weight with some scalars selected the inner optimizer sees one float32 vector of
    those scalars, so its state, and clipping, weight decay, accumulation and moving
    averages, know of nothing else. Afterwards the vector is written back. All other
    scalars keep their bits, whatever the inner optimizer or a constraint does. A
    weight that the mask takes whole (a fresh head) is handed over as it is, if it is
    not narrower than float32.

    An update whose gradient is not finite is skipped and counted. State: the inner
    optimizer's on the selected scalars, and 8 bytes per selected scalar.

    Args:
        inner: A Keras optimizer that is not built yet. A `LossScaleOptimizer` goes
            round the `SparseOptimizer`, not inside.
        mask: `SparseMask` of the model.
        name: Name of the optimizer.

    Raises:
        TypeError: if `inner` is no Keras optimizer or `mask` no `SparseMask`.
        ValueError: if `inner` is built already or scales the loss; at build, if the
            mask belongs to another model.

    Example:
    >>> model = keras.Sequential(
    ...     [keras.Input((4,)), keras.layers.Dense(3, name="dense")]
    ... )
    >>> mask = SparseMask.from_scores(
    ...     {v.path: np.random.rand(*v.shape) for v in model.trainable_variables},
    ...     fraction=0.2,
    ... )
    >>> model.compile(SparseOptimizer(keras.optimizers.Adam(1e-2), mask), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    """

    def __init__(
        self,
        inner: keras.optimizers.Optimizer,
        mask: SparseMask,
        name: str | None = None,
    ):
        """Check the arguments."""
        check_inner("inner", inner)
        if not isinstance(mask, SparseMask):
            raise TypeError(
                "`mask` of SparseOptimizer must be a SparseMask. Received: "
                f"{type(mask).__name__}."
            )
        super().__init__(learning_rate=0.0, name=name)
        self.inner = inner
        self.mask = mask
        self.run = RunState()
        self._owner = "SparseOptimizer"  # of a saved state; after build with the mask
        # Index of a probe, which receives the gradient of the selected scalars of a
        # variable in that variable's place -> index of the variable.
        self._probed: dict[int, int] = {}

    def __dir__(self) -> list[str]:
        """Hide the inner optimizer from Keras's files: `variables` has its state."""
        return [name for name in super().__dir__() if name != "inner"]

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the vectors of selected scalars and the inner optimizer's state."""
        if self.built:
            return
        variables = list(variables)
        matched = self.mask.match(variables)
        self._owner = (
            f"SparseOptimizer {_digest([matched.get(v.path, ()) for v in variables])}"
        )
        super().build(variables)
        self._skipped = self.add_variable(
            shape=(),
            initializer="zeros",
            dtype="int32",
            aggregation="only_first_replica",
            name="skipped_count",
        )
        # Per variable: None if frozen or whole, else the vector and its positions.
        self._values: list[keras.Variable | None] = []
        self._positions: list[keras.Variable | None] = []
        self._is_whole: list[bool] = []
        with creation_scope():
            for variable in variables:
                self._build_vectors(variable, matched.get(variable.path, ()))
        trained = [
            variable if whole else value
            for variable, whole, value in zip(
                variables, self._is_whole, self._values, strict=True
            )
            if whole or value is not None
        ]
        with keras.name_scope(self.inner.name):
            self.inner.build(trained)

    def _build_vectors(self, variable: keras.Variable, indices: Any) -> None:
        value = position = None
        dtype = keras.backend.result_type(variable.dtype, "float32")
        # Keras keeps Adam's state in the weight's dtype; in bfloat16 it stands still.
        is_whole = 0 < len(indices) == math.prod(variable.shape) and (
            dtype == variable.dtype
        )
        if len(indices) and not is_whole:
            position = self._add_vector(variable, "positions", indices, "int32")
            # In NumPy: JAX would compile a gather for each variable.
            weight = ops.convert_to_numpy(ops.convert_to_tensor(variable))
            start = weight.reshape(-1)[indices]
            value = self._add_vector(variable, "selected", start, dtype)
        self._values.append(value)
        self._positions.append(position)
        self._is_whole.append(is_whole)

    def _add_vector(
        self, variable: keras.Variable, name: str, start: Any, dtype: str
    ) -> keras.Variable:
        # Over devices Keras 3.15 compiles the initializer of a large variable.
        distributed = keras.distribution.distribution() is not None
        vector = self.add_variable(
            shape=(len(start),),
            initializer=(
                "zeros"
                if distributed
                else lambda shape, dtype: ops.array(np.asarray(start, dtype))
            ),
            dtype=dtype,
            name=f"{variable.path.replace('/', '_')}_{name}",
        )
        if distributed:
            vector.assign(np.asarray(start, dtype))
        return vector

    def trains(self, i: int) -> bool:
        """Return whether the mask holds any scalar of the `i`-th variable."""
        return self._is_whole[i] or self._values[i] is not None

    def selected_positions(self, i: int) -> np.ndarray | None:
        """Return the flat positions in the `i`-th variable if it trains in part."""
        positions = self._positions[i]
        return None if positions is None else ops.convert_to_numpy(positions)

    def add_probes(self, probes: Mapping[int, keras.Variable]) -> None:
        """Expect part of the gradient of some variables from a probe.

        Args:
            probes: By index of the variable; its gradient has the shape of the
                variable's selected scalars.
        """
        for i, probe in probes.items():
            j = len(self._values) + len(self._probed)
            self._trainable_variables_indices[self._var_key(probe)] = j
            self._probed[j] = i

    def remove_probes(self) -> None:
        """Forget what `add_probes` said."""
        indices = self._trainable_variables_indices
        for key in [key for key, i in indices.items() if i in self._probed]:
            del indices[key]
        self._probed.clear()

    @property
    def variables(self) -> list[keras.Variable]:
        """The optimizer's variables, the inner optimizer's included."""
        return self._variables + self.inner.variables

    @property
    def skipped_steps(self) -> int:
        """Number of updates skipped because a gradient was not finite."""
        return int(self._skipped.numpy()) if self.built else 0

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the selected scalars of the variables with `grads`."""
        if not self.built:
            with keras.name_scope(self.name):
                self.build(trainable_variables)
        variables = list(
            self._trainable_variables
            if trainable_variables is None
            else trainable_variables
        )
        self._check_variables_are_known(variables)
        with keras.name_scope(self.name):
            self._apply_to_selected(dense_gradients(grads), variables)
        self._iterations.assign_add(1)

    def _apply_to_selected(self, grads: list[Tensor], variables: list[Any]) -> None:
        trained, trained_grads = [], []
        compact, pairs = {}, []
        for gradient, variable in zip(grads, variables, strict=True):
            i = self._get_variable_index(variable)
            if i in self._probed:
                compact[self._probed[i]] = gradient
            else:
                pairs.append((gradient, variable))
        variables = [variable for _, variable in pairs]
        for gradient, variable in pairs:
            i = self._get_variable_index(variable)
            if self._is_whole[i]:
                trained.append(variable)
                trained_grads.append(gradient)
            elif self._values[i] is not None:
                self._values[i].assign(self._present_values(i, variable))
                trained.append(self._values[i])
                trained_grads.append(
                    self._selected_gradient(i, gradient, compact.get(i))
                )
        present = [g for g in trained_grads if g is not None]
        if not present:
            raise ValueError(
                "No gradient was provided for any variable that holds a selected "
                "scalar. Check that the loss depends on them and that their layers "
                "are trainable."
            )
        finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in present]))
        finite = holds_on_all(finite)
        apply_if(finite, self.inner, trained_grads, trained)
        self._constrain(variables, finite)
        self._skipped.assign_add(1 - ops.cast(finite, "int32"))
        self._write_back(variables)

    def _selected_gradient(
        self, i: int, gradient: Tensor | None, compact: Tensor | None
    ) -> Tensor | None:
        if gradient is None:
            return compact
        selected = gather(gradient, ops.convert_to_tensor(self._positions[i]))
        if compact is None:
            return selected
        return compact + ops.cast(selected, compact.dtype)

    def _present_values(self, i: int, variable: Any) -> Tensor:
        position = ops.convert_to_tensor(self._positions[i])
        present = gather(ops.convert_to_tensor(variable), position)
        return resynced(ops.convert_to_tensor(self._values[i]), present)

    def _constrain(self, variables: list[Any], finite: Tensor) -> None:
        """Move updated vectors to where the variables' constraints allow."""
        for variable in variables:
            i = self._get_variable_index(variable)
            if self._values[i] is None or variable.constraint is None:
                continue
            position = ops.convert_to_tensor(self._positions[i])
            value = ops.convert_to_tensor(self._values[i])
            new = scatter(ops.convert_to_tensor(variable), position, value)
            allowed = gather(variable.constraint(new), position)
            allowed = ops.where(finite, resynced(value, allowed), value)
            self._values[i].assign(allowed)

    def _write_back(self, variables: list[Any]) -> None:
        """Write the vectors of selected scalars into the variables."""
        partial, selected = [], []
        for variable in variables:
            i = self._get_variable_index(variable)
            if self._values[i] is not None:
                value, position = self._values[i], self._positions[i]
                partial.append(variable)
                selected.append(
                    (ops.convert_to_tensor(value), ops.convert_to_tensor(position))
                )

        def write_one(selected: tuple[Tensor, Tensor], variable: Any, _: Any) -> None:
            value, position = selected
            write(variable, position, value)

        update_each(write_one, selected, partial, ())

    def finalize_variable_values(self, var_list: Any) -> None:
        """Set final values, such as the inner optimizer's moving average."""
        trained = self.inner._trainable_variables
        self.inner.finalize_variable_values(trained)
        if self.inner.use_ema:
            # Copies: on JAX two variables must not share a donated buffer.
            for variable in trained:
                variable.assign(ops.copy(variable))
        self._write_back(list(var_list))

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Scale the loss as the inner optimizer does."""
        return self.inner.scale_loss(loss)

    @property
    def loss_scale_factor(self) -> float | None:
        """The inner optimizer's; a `LossScaleOptimizer` outside takes it away."""
        return self.inner.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if "inner" in vars(self):  # not while Keras's constructor runs
            self.inner.loss_scale_factor = factor

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's learning rate."""
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """The inner optimizer's number of updates."""
        return self.inner.iterations

    def load_own_variables(self, store: Any) -> None:
        """Load saved state; that of another mask or inner optimizer is an error.

        A state of another kind of optimizer is left alone with Keras's warning.
        """
        own, run = self.run.split(store)
        if is_foreign(own, self):
            return
        super().load_own_variables(checked_state(own, self.variables, self._owner))
        self.run.loaded = run

    def save_own_variables(self, store: Any) -> None:
        """Save the state, and that of the run."""
        super().save_own_variables(store)
        save_owner(store, self._owner)
        self.run.save(store)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "inner": serialize(self.inner),
            "mask": serialize(self.mask),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "SparseOptimizer":
        """Rebuild from `get_config()`."""
        config = dict(config)
        for name in ("inner", "mask"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)


def _digest(indices: Sequence[Any]) -> str:
    """Return what tells the selected scalars of one mask from those of another."""
    digest = hashlib.sha256()
    for found in indices:
        digest.update(f"{len(found)} ".encode())
        digest.update(np.asarray(found, "int64").tobytes())
    return digest.hexdigest()
