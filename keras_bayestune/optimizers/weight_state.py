"""The optimizer variables that stage 1 keeps for one weight."""

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_bayestune.priors import LaplacePrior
from keras_bayestune.samplers import Sampler
from keras_bayestune.updates.sampled import Moments, Weight

Tensor = Any  # a backend tensor


@dataclass(frozen=True)
class WeightState:
    """Optimizer variables of one weight; every one has the weight's shape."""

    path: str
    prior: LaplacePrior | None
    slots: dict[str, keras.Variable]  # float32, of sampler and metric, or Adam's
    anchor: keras.Variable | None = None  # the weight's dtype
    displacement: keras.Variable | None = None  # float32, for narrower weights
    mean: keras.Variable | None = None  # float32
    second_moment: keras.Variable | None = None  # float32, if asked

    @classmethod
    def create(
        cls,
        optimizer: keras.optimizers.Optimizer,
        variable: keras.Variable,
        path: str,
        prior: LaplacePrior | None,
        sampler: Sampler,
        second_moment: bool,
    ) -> "WeightState":
        """Add the variables to `optimizer`."""

        def add(name: str, value: float = 0.0) -> keras.Variable:
            return optimizer.add_variable(
                shape=variable.shape,
                initializer=keras.initializers.Constant(value),
                dtype="float32",
                layout=getattr(variable, "_layout", None),
                name=f"{variable.path.replace('/', '_')}_{name}",
            )

        if prior is None:
            slots = {name: add(name) for name in ("momentum", "velocity")}
            return cls(path, None, slots)
        # A copy: on JAX two variables must not share a donated buffer. A sharded
        # weight's comes afterwards: Keras 3.15 compiles the initializer of a large one,
        # and would put the whole weight into the program.
        sharded = getattr(variable, "_layout", None) is not None
        anchor = optimizer.add_variable_from_reference(
            variable,
            name="anchor",
            initializer=(
                "zeros" if sharded else lambda shape, dtype: ops.copy(variable)
            ),
        )
        if sharded:
            anchor.assign(ops.copy(variable))
        initial = {
            **sampler.initial_slots(prior),
            **sampler.metric.initial_slots(tuple(variable.shape)),
        }
        dtype = keras.backend.standardize_dtype(variable.dtype)
        return cls(
            path=path,
            prior=prior,
            slots={name: add(name, value) for name, value in initial.items()},
            anchor=anchor,
            displacement=(
                add("displacement") if dtype in ("float16", "bfloat16") else None
            ),
            mean=add("scale_mean"),
            second_moment=add("scale_second_moment") if second_moment else None,
        )

    def weight(self, variable: Any) -> Weight:
        """Return what an update moves of a weight under a prior."""
        return Weight(
            value=ops.convert_to_tensor(variable),
            displacement=tensor_or_none(self.displacement),
            slots={n: ops.convert_to_tensor(slot) for n, slot in self.slots.items()},
        )

    def moments(self) -> Moments:
        """Return the running means of the score."""
        return Moments(
            ops.convert_to_tensor(self.mean), tensor_or_none(self.second_moment)
        )

    def moment_changes(self, new: Moments) -> list[tuple[Any, Tensor]]:
        """Return what to assign to which variable so that `new` is stored."""
        pairs = [(self.mean, new.mean), (self.second_moment, new.second_moment)]
        return [pair for pair in pairs if pair[0] is not None]

    @property
    def is_sharded(self) -> bool:
        """Whether the weight was given a layout over devices."""
        return getattr(self.mean, "_layout", None) is not None

    def changes(self, variable: Any, new: Weight) -> list[tuple[Any, Tensor]]:
        """Return what to assign to which variable so that `new` is stored."""
        pairs = [(variable, new.value)]
        if self.displacement is not None:
            pairs.append((self.displacement, new.displacement))
        return pairs + [(self.slots[name], slot) for name, slot in new.slots.items()]


def tensor_or_none(variable: keras.Variable | None) -> Tensor | None:
    """Return the value of a variable, if there is one."""
    return None if variable is None else ops.convert_to_tensor(variable)
