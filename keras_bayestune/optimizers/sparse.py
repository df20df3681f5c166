# Over 300 lines: one optimizer; a third of it is docstrings and delegation.
"""Stage 2: any Keras optimizer, on the selected scalars only."""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers.arguments import check_inner
from keras_bayestune.optimizers.bayestune_sgld import BayesTuneSGLD
from keras_bayestune.optimizers.selected_vector import SelectedVector, is_elementwise
from keras_bayestune.optimizers.state import (
    RunState,
    checked_state,
    is_foreign,
    save_owner,
)
from keras_bayestune.paths import variable_paths
from keras_bayestune.updates.apply_if_finite import apply_if_finite
from keras_bayestune.updates.gather_scatter import write
from keras_bayestune.updates.probed_step import is_whole
from keras_bayestune.updates.replicas import (
    check_have_values,
    clear_gradients,
    creation_scope,
    dense_gradients,
    native,
    update_each,
)

Tensor = Any  # a backend tensor

_OWN = {"name", "built", "inner", "mask", "run"}  # other public attributes are settings


@keras.saving.register_keras_serializable(package="keras_bayestune")
class SparseOptimizer(keras.optimizers.Optimizer):
    """Run any Keras optimizer on the selected scalars only.

    Stage 2 of BayesTune (Kim & Hospedales, NeurIPS 2023, section 3.3). The inner
    optimizer sees float32 vectors of the selected scalars, so its state, and clipping,
    weight decay, accumulation and moving averages, know of nothing else. Afterwards
    the vectors are written back. All other scalars keep their bits, whatever the inner
    optimizer or a constraint does. A weight that the mask takes whole (a fresh head)
    is handed to the inner optimizer as it is, unless it is narrower than float32.

    If the inner optimizer is one of Keras's that treat every scalar alone (Adam, SGD,
    Lion and the like) and has no `clipnorm`, all weights share one vector, or one for
    each dtype and each side of its exclusions from weight decay. With every other
    optimizer each weight has a vector of its own, with the name and the path of the
    weight, so that rules for each weight or by name hold. The settings of the inner
    optimizer can be read and set here as well.

    An update whose gradient is not finite is skipped and counted. State: the inner
    optimizer's on the selected scalars, and 8 bytes per selected scalar.

    Args:
        inner: A Keras optimizer that is not built yet. A `LossScaleOptimizer` goes
            round the `SparseOptimizer`, not inside.
        mask: `SparseMask` of the model.
        name: Name of the optimizer.

    Raises:
        TypeError: if `inner` is not a Keras optimizer, or `mask` is not a `SparseMask`.
        ValueError: if `inner` is built already or scales the loss; at build, if the
            mask belongs to another model.

    Examples:
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3, name="dense")]
        ... )
        >>> mask = SparseMask.from_scores(
        ...     {v.path: np.random.rand(*v.shape) for v in model.trainable_variables},
        ...     fraction=0.2,
        ... )
        >>> adam = keras.optimizers.Adam(1e-2)
        >>> model.compile(SparseOptimizer(adam, mask), loss="mse")
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0)
    """

    built: bool

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
        # What Keras's constructor has set for itself belongs to the inner optimizer.
        settings = {n for n in (*vars(self), *vars(inner)) if not n.startswith("_")}
        settings -= _OWN
        for setting in settings & set(vars(self)):
            delattr(self, setting)
        self.mask = mask
        self.run = RunState()
        if isinstance(inner, BayesTuneSGLD):
            inner.run.is_attended = True  # the mask is there, and frozen scalars stay
        self._owner = "SparseOptimizer"  # of a saved state; after build with the mask
        # Places of the weights that the inner optimizer excludes from weight decay.
        self._without_decay: list[int] = []
        # A probe receives the gradient of the selected scalars of a weight in that
        # weight's place: key of the probe -> place of the weight.
        self._probed: dict[Any, int] = {}
        self.inner = inner
        self._settings = frozenset(settings)

    def __getattr__(self, name: str) -> Any:
        """Return a setting of the inner optimizer, such as `weight_decay`."""
        if name in vars(self).get("_settings", ()):
            return getattr(self.inner, name)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}.")

    def __setattr__(self, name: str, value: Any) -> None:
        """Hand a setting of the inner optimizer on to it."""
        if name in vars(self).get("_settings", ()):
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """Hide the inner optimizer from Keras's files: `variables` has its state."""
        return [name for name in super().__dir__() if name != "inner"]

    def exclude_from_weight_decay(
        self, var_list: Any = None, var_names: Any = None
    ) -> None:
        """Exclude weights from the weight decay of the inner optimizer."""
        self.inner.exclude_from_weight_decay(var_list, var_names)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the vectors of selected scalars and the inner optimizer's state."""
        if self.built:
            return
        variables = list(variables)
        check_have_values(variables)
        # Saved with the model, it needs the model's order.
        self.mask = self.mask.in_order_of(variables)
        matched = self.mask.match(variables)
        _check_all_are_known(variables, matched)
        selected = {
            i: matched[path]
            for i, path in enumerate(variable_paths(variables))
            if len(matched.get(path, ()))
        }
        self._owner = f"SparseOptimizer {_digest(selected)}"
        # By `__dict__`: not to be tracked as the optimizer's own.
        self.__dict__["_trainable_variables"] = self.__dict__["_weights"] = variables
        for i, variable in enumerate(variables):
            self._trainable_variables_indices[self._var_key(variable)] = i
        self._skipped = self.add_variable(
            shape=(),
            initializer="zeros",
            dtype="int32",
            aggregation="only_first_replica",
            name="skipped_count",
        )
        # Keras keeps Adam's state in the weight's dtype; in bfloat16 it stands still.
        self._whole = tuple(
            i
            for i, found in selected.items()
            if len(found) == math.prod(variables[i].shape)
            and variables[i].dtype
            == keras.backend.result_type(variables[i].dtype, "float32")
        )
        if self._without_decay:  # of a loaded optimizer: Keras forgets it
            excluded = [variables[i] for i in self._without_decay]
            self.inner.exclude_from_weight_decay(excluded)
        decays = {i: _decays(self.inner, variables[i]) for i in selected}
        self._without_decay = [i for i in selected if not decays[i]]
        self._shares_vectors = is_elementwise(self.inner)
        groups: dict[Any, dict[int, np.ndarray]] = {}
        for i in selected:
            if i not in self._whole:
                alone = None if self._shares_vectors else i
                key = variables[i].dtype, decays[i], alone
                groups.setdefault(key, {})[i] = selected[i]
        with creation_scope():
            self._vectors = [
                SelectedVector.create(self, variables, group)
                for group in groups.values()
            ]
        trained = [(v.value, v.weights[0]) for v in self._vectors]
        trained += [(variables[i], i) for i in self._whole]
        # What a weight was excluded from, its vector is; a MultiOptimizer has several.
        for optimizer in (self.inner, *getattr(self.inner, "optimizers", ())):
            spared = [v for v, i in trained if not _decays(optimizer, variables[i])]
            optimizer.exclude_from_weight_decay(spared)
        with keras.name_scope(self.inner.name):
            self.inner.build([variable for variable, _ in trained])
        self.built = True

    def trains(self, i: int) -> bool:
        """Return whether the mask holds any scalar of the `i`-th variable."""
        return i in self._whole or any(i in v.weights for v in self._vectors)

    def selected_indices(self, i: int) -> np.ndarray | None:
        """Return the flat indices in the `i`-th variable if it trains in part."""
        found = [v.indices_in(i) for v in self._vectors if i in v.weights]
        return found[0] if found else None

    def expect(
        self, probes: Mapping[int, keras.Variable], note: Callable[[int], None]
    ) -> None:
        """Add the gradients of these variables, and of no others, to those of weights.

        Args:
            probes: By place of the weight; the gradient of each has the shape of the
                weight's selected scalars.
            note: Called with the place of a weight that has a gradient of its own, too.
        """
        self._note = note
        self._probed = {self._var_key(probe): i for i, probe in probes.items()}

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
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        gradients: dict[int, Tensor | None] = {}
        compact: dict[int, Tensor] = {}
        for gradient, variable in zip(
            dense_gradients(grads, trainable_variables),
            trainable_variables,
            strict=True,
        ):
            probed = self._probed.get(self._var_key(variable))
            if probed is not None:
                compact[probed] = gradient
                continue
            self._check_variables_are_known([variable])
            gradients[self._get_variable_index(variable)] = gradient
        for i in compact:
            if is_whole(gradients.get(i)):
                self._note(i)
        with keras.name_scope(self.name):
            self._apply_to_selected(gradients, compact)
        clear_gradients(trainable_variables)
        self._iterations.assign_add(1)

    def _apply_to_selected(
        self, gradients: dict[int, Tensor | None], compact: dict[int, Tensor]
    ) -> None:
        if self._shares_vectors and self.inner.clipnorm:
            raise ValueError(
                f"`clipnorm` was set to {self.inner.clipnorm} after the optimizer was "
                "built, when weights share a vector. Set it before."
            )
        trained, trained_grads = [], []
        moved: set[int] = set()
        for vector in self._vectors:
            if not gradients.keys() & set(vector.weights):
                continue
            vector.refresh(self._weights)
            gradient, having = vector.gradient(gradients, compact, self._weights)
            moved |= having
            trained.append(vector.value)
            trained_grads.append(gradient)
        for i in self._whole:
            if i in gradients:
                trained.append(self._weights[i])
                trained_grads.append(gradients[i])
        if all(gradient is None for gradient in trained_grads):
            raise ValueError(
                "No gradient was provided for any variable that holds a selected "
                "scalar. Check that the loss depends on them and that their layers "
                "are trainable."
            )
        finite = apply_if_finite(self.inner, trained_grads, trained)
        for vector in self._vectors:
            vector.constrain(self._weights, moved, finite)
        self._skipped.assign_add(1 - ops.cast(finite, "int32"))
        self._write_back(moved)

    def _write_back(self, moved: Collection[int]) -> None:
        """Write the vectors of selected scalars into those weights."""
        written = [part for v in self._vectors for part in v.written(moved)]
        weights = [self._weights[i] for i, _, _ in written]
        selected = [(value, indices) for _, value, indices in written]

        def write_one(selected: tuple[Tensor, Tensor], variable: Any, _: Any) -> None:
            value, indices = selected
            write(variable, indices, value)

        update_each(write_one, selected, weights, ())

    def finalize_variable_values(self, var_list: Any) -> None:
        """Set final values, such as the inner optimizer's moving average."""
        if is_elementwise(self.inner) and not self.inner.use_ema:
            return
        trained = self.inner._trainable_variables
        self.inner.finalize_variable_values(trained)
        # Copies: on JAX two variables must not share a donated buffer.
        for variable in trained:
            variable.assign(ops.copy(variable))
        self._write_back(range(len(self._weights)))

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Scale the loss as the inner optimizer does."""
        return self.inner.scale_loss(loss)

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

    def __repr__(self) -> str:
        """Show what trains, and how."""
        return f"<SparseOptimizer {type(self.inner).__name__} on {self.mask}>"

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "inner": serialize(self.inner),
            "mask": serialize(self.mask),
            "without_decay": list(self._without_decay),
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
        without_decay = config.pop("without_decay")
        optimizer = cls(**config)
        optimizer._without_decay = list(without_decay)
        return optimizer


def _decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Return whether nothing excluded the variable from the optimizer's weight decay.

    Keras 3.15 tells this of any variable, later ones only of those they are built for.
    """
    variable, settings = native(variable), vars(optimizer)
    pattern = settings.get("_exclude_from_weight_decay_pattern")
    if optimizer._var_key(variable) in settings.get("_exclude_from_weight_decay", ()):
        return False
    return pattern is None or pattern.search(variable.name) is None


def _digest(selected: Mapping[int, Any]) -> str:
    """Return what tells the selected scalars of one mask from those of another."""
    digest = hashlib.sha256()
    for i, indices in selected.items():
        digest.update(f"{i} {len(indices)} ".encode())
        digest.update(np.asarray(indices, "int64").tobytes())
    return digest.hexdigest()


def _check_all_are_known(
    variables: list[keras.Variable], matched: Mapping[str, Any]
) -> None:
    unknown = [path for path in variable_paths(variables) if path not in matched]
    if unknown:
        raise ValueError(
            f"The mask does not know {len(unknown)} of {len(variables)} trainable "
            f"variables, so they would not train: {unknown[:5]}. If stage 1 ran while "
            "their layers were frozen, freeze them now, or unfreeze them before stage "
            "1. To train them all with this mask, make it with "
            "SparseMask.from_scores(..., always={path: shape})."
        )
