# Over 300 lines: one optimizer with its read access, a quarter docstring.
"""Stage 1: sample the posterior of the weights and score every scalar."""

import functools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.arguments import check_integer, check_seed, draw_seed
from keras_bayestune.matching import saved_paths
from keras_bayestune.optimizers.arguments import (
    check_burn_in,
    check_effective_size,
    check_noise_scale,
    check_type,
)
from keras_bayestune.optimizers.state import (
    RunState,
    checked_state,
    is_foreign,
    save_non_trainable,
    save_owner,
    split_non_trainable,
)
from keras_bayestune.optimizers.weight_group import WeightGroup, grouped
from keras_bayestune.optimizers.weight_state import WeightState, tensor_or_none
from keras_bayestune.paths import variable_paths
from keras_bayestune.priors import LaplacePrior, assign_priors
from keras_bayestune.samplers import Collapsed, Sampler, Step
from keras_bayestune.updates.begin import Chain, Schedule, begin_step
from keras_bayestune.updates.joined import PerScalar, joined, per_scalar
from keras_bayestune.updates.replicas import (
    check_have_values,
    creation_scope,
    dense_gradients,
    sum_over_replicas,
    update_each,
)
from keras_bayestune.updates.rows_and_columns import RowsAndColumns, mean_squares
from keras_bayestune.updates.sampled import (
    Single,
    adam_update,
    weight_update,
    with_sample,
)

Tensor = Any  # a backend tensor

_OWNER = "BayesTuneSGLD"  # of a saved state
_CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
LARGEST_NOISE = 0.05  # of the weights' own spread, per update


@keras.saving.register_keras_serializable(package="keras_bayestune")
class BayesTuneSGLD(keras.optimizers.Optimizer):
    r"""Stochastic-gradient Langevin dynamics that learns which scalars must move.

    Stage 1 of BayesTune (Kim & Hospedales, NeurIPS 2023, algorithm 1). Every weight
    carries a Laplace prior centred at its value when the optimizer is built (the
    anchor), with a Gamma hyper-prior on its scale. The optimizer samples

        p(weights, scales | data) ~ exp(-N L) p(weights | scales) p(scales)

    L is the mean minibatch loss, N the effective size, and `sampler` the rule of one
    update. The first `warmup_steps` updates are plain descent, those up to
    `burn_in_steps` are thrown away, then every `thinning`-th one is a sample of which
    the scales are averaged. A large posterior mean says: this scalar has to move.

    Weights inside a `WithPrior` carry the prior given there; without any `WithPrior`
    all trainable ones carry `prior`, except those that `exclude` matches. Weights
    without a prior (a fresh head) train by Adam at the same learning rate.

    State per scalar: the anchor in the weight's dtype and the running mean in
    float32, whatever the weight's dtype; the running second moment if asked; a
    float32 displacement for weights narrower than float32; the sampler's own.

    Args:
        learning_rate: Float, schedule or callable. Read it like Adam's: about the
            root-mean-square displacement per scalar and update; 1e-5 to 1e-4 for
            transformers, 3e-3 for small vision models.
        effective_size: N, > 0, in examples: how much the data weigh against prior
            and noise; it also sets the temperature, 1/N, and is not the length of
            the data set. `"auto"` measures at the end of warm-up the N for which the
            noise of an update, at `noise_scale=1`, is as large as its gradient step.
        prior: `LaplacePrior` of weights that are not inside a `WithPrior`.
        sampler: `Collapsed()`, `JointLangevin()` or `Authors()`.
        noise_scale: gamma >= 0, the square root of a temperature; 1 samples the
            posterior, 0 descends to a mode. `None`: 1 if `effective_size` is a
            number. With `"auto"`, whose N is no statement about the data, a
            tenth for `Collapsed()`, which in a short run chose better: a cold
            posterior (Wenzel et al. 2020), of temperature 0.01.
        warmup_steps: Updates without prior and noise; about a quarter of the run.
        burn_in_steps: Updates before the first sample can be taken, counted from
            the start, >= `warmup_steps`; about half of the run.
        thinning: Updates from one sample to the next, >= 1.
        exclude: Regular expressions; a variable whose path one of them matches
            (`re.search`) carries no prior.
        seed: Int in [0, 2**31); one seed repeats a run. `None` draws one, as Keras
            does: `keras.utils.set_random_seed` repeats the run then.
        second_moment: Whether to keep the running mean of the squared scale as well.
        **base: Keyword arguments of `keras.optimizers.Optimizer`. Without any
            clipping argument `global_clipnorm=1.0` is used.

    Raises:
        ValueError: if an argument is out of range; at build, if there is no trainable
            variable, a pattern of `exclude` matches nothing, or no variable is left.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(
    ...     optimizer=BayesTuneSGLD(
    ...         learning_rate=1e-3, warmup_steps=4, burn_in_steps=8, thinning=2, seed=0
    ...     ),
    ...     loss="mse",
    ... )
    >>> select = SparseMaskCallback(fraction=0.5)
    >>> x, y = np.random.rand(32, 4), np.random.rand(32)
    >>> history = model.fit(x, y, batch_size=2, callbacks=[select], verbose=0)
    >>> model.optimizer.num_samples
    4
    >>> scales = model.optimizer.posterior_scales()
    """

    def __init__(
        self,
        learning_rate: Any,
        effective_size: float | str = "auto",
        prior: LaplacePrior | None = None,
        sampler: Sampler | None = None,
        noise_scale: float | None = None,
        warmup_steps: int = 100,
        burn_in_steps: int = 200,
        thinning: int = 5,
        exclude: Sequence[str] = (),
        seed: int | None = None,
        second_moment: bool = False,
        **base: Any,
    ):
        """Check the arguments."""
        if not any(name in base for name in _CLIPPING):
            base["global_clipnorm"] = 1.0
        super().__init__(learning_rate=learning_rate, **base)
        self.effective_size = check_effective_size(effective_size)
        self.prior = LaplacePrior() if prior is None else prior
        self.sampler = Collapsed() if sampler is None else sampler
        check_type("prior", self.prior, LaplacePrior, "LaplacePrior()")
        check_type("sampler", self.sampler, Sampler, "Collapsed()")
        if noise_scale is None:
            auto = self.effective_size == "auto"
            noise_scale = self.sampler.auto_noise_scale if auto else 1.0
        self.noise_scale = check_noise_scale(noise_scale)
        self.warmup_steps = check_integer("warmup_steps", warmup_steps, 0)
        self.burn_in_steps = check_integer("burn_in_steps", burn_in_steps, 0)
        check_burn_in(self.burn_in_steps, self.warmup_steps)
        self.thinning = check_integer("thinning", thinning, 1)
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
        self.seed = check_seed(seed)
        self.second_moment = bool(second_moment)
        # Of the model's non-trainable float variables, in its order: whoever starts
        # the chain puts them here, so that they are saved with it.
        self.non_trainable_anchors: list[np.ndarray] = []
        self.run = RunState()
        self._has_warned = False
        # Shapes by path of the variables that `exclude` is for, once they are known.
        self._saved_shapes: dict[str, tuple[int, ...]] = {}

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the state for `variables`; their values become the anchors."""
        if self.built:
            return
        variables = list(variables)
        if not variables:
            raise ValueError(
                "BayesTuneSGLD received no trainable variables. Build the model, and "
                "set `trainable = True` on the layers that are to be tuned."
            )
        check_have_values(variables)
        paths = variable_paths(variables)
        # Those that the patterns were written for, if this is a loaded model.
        names = saved_paths(self._saved_shapes, variables)
        priors = assign_priors(variables, names, self.prior, self.exclude)
        self._saved_shapes = {
            name: tuple(v.shape) for name, v in zip(names, variables, strict=True)
        }
        super().build(variables)
        # Place of each variable under a prior among those V variables.
        self._prior_index = {
            i: n for n, i in enumerate(i for i, p in enumerate(priors) if p)
        }
        seed = draw_seed() if self.seed is None else self.seed
        size = self.effective_size if self.effective_size != "auto" else 0.0
        self._chain = Chain(
            count=self._add_scalar("update_count", 0, "int32"),
            samples=self._add_scalar("sample_count", 0, "int32"),
            skipped=self._add_scalar("skipped_count", 0, "int32"),
            effective_size=self._add_scalar("effective_size", float(size), "float32"),
            mean_square=self._add_scalar(
                "mean_square", 0.0, "float32", shape=(len(self._prior_index),)
            ),
            seed=self._add_scalar("seed", seed, "int32"),
        )
        # Weights whose step size the metric adapts by rows and columns.
        shapes = {i: tuple(variables[i].shape) for i in self._prior_index}
        metric = self.sampler.metric
        shapes = {i: s for i, s in shapes.items() if metric.is_factored(s)}
        # Place of each of them in `self._lines`.
        self._factored = {i: k for k, i in enumerate(shapes)}
        self._lines = RowsAndColumns(list(shapes.values()))
        if self._factored:
            lines_shape = (self._lines.size,)
            squares = self._add_scalar("line_squares", 0.0, "float32", lines_shape)
            self._chain = self._chain._replace(squares=squares)
        self._noise_per_step = self._add_scalar("noise_per_step", 0.0, "float32")
        with creation_scope():
            self._states = [
                WeightState.create(self, v, p, prior, self.sampler, self.second_moment)
                for v, p, prior in zip(variables, paths, priors, strict=True)
            ]

    def _add_scalar(
        self, name: str, value: float, dtype: str, shape: tuple[int, ...] = ()
    ) -> keras.Variable:
        return self.add_variable(
            shape=shape,
            initializer=keras.initializers.Constant(value),
            dtype=dtype,
            aggregation="only_first_replica",
            name=name,
        )

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Update the variables with `grads`, as any Keras optimizer does."""
        super().apply(dense_gradients(grads), trainable_variables)

    def _clip_gradients(self, grads: list[Tensor]) -> list[Tensor]:
        # A norm summed in float16 would be infinite above 256.
        grads = [ops.cast(g, "float32") for g in sum_over_replicas(grads)]
        if self.global_clipnorm:
            return grads  # clipped by `Step.gradient_scale`
        clipped = super()._clip_gradients(grads)
        if self.clipvalue:
            # An infinity clipped to a number would no longer skip the update: add
            # 0, or NaN where the gradient is not finite.
            clipped = [c + (g - g) for c, g in zip(clipped, grads, strict=True)]
        return clipped

    def _apply_weight_decay(self, variables: Any) -> None:
        """Done with the update, so that a skipped step leaves the weights alone."""

    def _backend_update_step(
        self, grads: list[Tensor], trainable_variables: list[Any], learning_rate: Tensor
    ) -> None:
        step = self._begin_step(grads, trainable_variables, learning_rate)
        gradients = dict(
            zip(map(self._get_variable_index, trainable_variables), grads, strict=True)
        )
        for i, gradient in gradients.items():
            if self._states[i].prior is None:
                self._update_without_prior(i, gradient, step)
        groups = grouped(
            gradients,
            self._states,
            self._trainable_variables,
            [self._use_weight_decay(v) for v in self._trainable_variables],
        )
        update = functools.cache(lambda prior: weight_update(step, self.sampler, prior))
        for group in groups:
            gradient = joined([gradients[i] for i in group.indices])
            arrays = (group.weight(), group.anchor(), gradient)
            joint, single = self._beside(group, step)
            factors = self._factors(group, step)
            new = update(group.prior)((*arrays, joint), single, factors)
            self._store(group.changes(new))
        self._add_sample(groups, step)

    def _begin_step(
        self, grads: list[Tensor], variables: list[Any], learning_rate: Tensor
    ) -> Step:
        """Work out and store the scalars of this update."""
        indices = [self._get_variable_index(v) for v in variables]
        sizes = {
            i: float(math.prod(v.shape))
            for i, v in zip(indices, variables, strict=True)
        }
        lines = {
            i: mean_squares(g)
            for i, g in zip(indices, grads, strict=True)
            if i in self._factored
        }
        by_index = {
            i: ops.sqrt(
                sizes[i] * ops.mean(lines[i][0])
                if i in lines
                else ops.sum(ops.square(g))
            )
            for i, g in zip(indices, grads, strict=True)
        }
        zero = ops.zeros((), "float32")
        factored = None
        if self._factored:
            now = self._lines.joined([lines.get(i) for i in self._factored])
            factored = self._lines, now
        step, chain = begin_step(
            Chain(*map(tensor_or_none, self._chain)),
            list(by_index.values()),
            [by_index.get(i, zero) for i in self._prior_index],
            [sizes.get(i, 0.0) for i in self._prior_index],
            ops.cast(learning_rate, "float32"),
            self.sampler,
            Schedule(
                self.warmup_steps,
                self.burn_in_steps,
                self.thinning,
                self.noise_scale,
                self.effective_size == "auto",
                self.global_clipnorm,
            ),
            factored,
        )
        for variable, value in zip(self._chain, chain, strict=True):
            if variable is not None:
                variable.assign(value)
        noise = ops.where(step.active, self.sampler.noise_per_step(step), 0.0)
        self._noise_per_step.assign(noise)
        return step

    def _update_without_prior(self, i: int, gradient: Tensor, step: Step) -> None:
        """Update variable `i` by Adam."""
        variable, slots = self._trainable_variables[i], self._states[i].slots
        targets = (variable, slots["momentum"], slots["velocity"])
        value, momentum, velocity = map(ops.convert_to_tensor, targets)
        decay = self._decay(variable, step)
        new = adam_update(value, gradient, momentum, velocity, decay, step)
        self._store(zip(targets, new, strict=True))

    def _beside(
        self, group: WeightGroup, step: Step
    ) -> tuple[PerScalar | None, Single]:
        """Return step size, weight decay and noise of a group."""
        places = [self._prior_index[i] for i in group.indices]
        count = self.sampler.num_noises
        streams = [[count * place + k for place in places] for k in range(count)]
        single = Single(
            step.step_size[places[0]],
            step.mean_square[places[0]],
            self._decay(group.variables[0], step),
            tuple(stream[0] for stream in streams),
        )
        if len(places) == 1:
            return None, single
        noise, shapes = self.sampler.noise, group.shapes
        return per_scalar(noise, step, places, streams, shapes), single

    def _factors(self, group: WeightGroup, step: Step) -> tuple[Tensor, Tensor] | None:
        """Return what the step size is multiplied by, for each row and column."""
        place = self._factored.get(group.indices[0])
        return None if place is None else self._lines.of_weight(place, step.factors)

    def _decay(self, variable: Any, step: Step) -> Tensor | float:
        if self.weight_decay and self._use_weight_decay(variable):
            return step.learning_rate * self.weight_decay
        return 0.0

    def _add_sample(self, groups: list[WeightGroup], step: Step) -> None:
        """Add a posterior sample to the running moments, if one is due."""
        new = with_sample(
            [(group.moments(), group.weight(), group.anchor()) for group in groups],
            [group.prior for group in groups],
            step,
            self.sampler,
        )
        for group, moments in zip(groups, new, strict=True):
            self._store(group.moment_changes(moments))

    def _store(self, changes: Iterable[tuple[Any, Tensor]]) -> None:
        """Assign each value to its variable, on every replica."""
        targets, values = zip(*changes, strict=True)
        update_each(
            lambda value, target, _: self.assign(target, value), values, targets, ()
        )

    def finalize_variable_values(self, var_list: Any) -> None:
        """Set the variables to their moving averages; Keras's `fit` ends with it."""
        self._warn_if_nobody_makes_a_mask()
        super().finalize_variable_values(var_list)
        if self.use_ema:
            # Copies: on JAX two variables must not share a donated buffer.
            for variable in var_list:
                variable.assign(ops.copy(variable))

    def _warn_if_nobody_makes_a_mask(self) -> None:
        # A loop of one's own asks for moving averages, if it has any.
        if self.run.is_attended or self.use_ema or not self.num_updates:
            return
        self.run.is_attended = True  # once is enough
        warnings.warn(
            "`fit` with BayesTuneSGLD ended without SparseMaskCallback: there is no "
            "mask, and all weights under the prior have moved, under noise. Use "
            "model.fit(..., callbacks=[SparseMaskCallback(...)]). If you make the mask "
            "yourself, from posterior_scales(), first give the weights the values of "
            "anchors() back.",
            stacklevel=2,
        )

    @property
    def num_samples(self) -> int:
        """Number of posterior samples taken so far."""
        return self._count("samples")

    @property
    def num_updates(self) -> int:
        """Number of updates done, without skipped ones and accumulation steps."""
        return self._count("count")

    @property
    def skipped_steps(self) -> int:
        """Number of updates skipped because a gradient was not finite."""
        return self._count("skipped")

    @property
    def phase(self) -> str:
        """`"warm-up"`, `"burn-in"` or `"sampling"`: what the next update belongs to."""
        following = self.num_updates + 1
        if following < self.sampler.first_active_step(self.warmup_steps):
            return "warm-up"
        return "burn-in" if following <= self.burn_in_steps else "sampling"

    def _count(self, name: str) -> int:
        return int(getattr(self._chain, name).numpy()) if self.built else 0

    def current_effective_size(self) -> float | None:
        """N in use; `None` while `"auto"` has not measured it yet."""
        if self.effective_size != "auto":
            return float(self.effective_size)
        size = float(self._chain.effective_size.numpy()) if self.built else 0.0
        return size or None

    def posterior_scales(self) -> dict[str, np.ndarray]:
        """Return `{variable path: posterior mean of each scale}`, float32.

        Raises:
            ValueError: if no sample was taken yet.
        """
        self.check_sampled()
        self.warn_if_noise_dominates()
        return {s.path: ops.convert_to_numpy(s.mean) for s in self._under_prior()}

    def running_means(self) -> list[tuple[str, keras.Variable]]:
        """Return the path and the running mean of each variable under a prior."""
        return [(state.path, state.mean) for state in self._under_prior()]

    def posterior_second_moments(self) -> dict[str, np.ndarray]:
        """Return `{variable path: posterior mean of each squared scale}`, float32.

        Raises:
            ValueError: if `second_moment=False`, or no sample was taken yet.
        """
        if not self.second_moment:
            raise ValueError(
                "The second moment of the scales was not kept. Build the optimizer "
                "with BayesTuneSGLD(..., second_moment=True)."
            )
        self.check_sampled()
        return {
            s.path: ops.convert_to_numpy(s.second_moment) for s in self._under_prior()
        }

    def _under_prior(self) -> list[WeightState]:
        return [state for state in self._states if state.prior is not None]

    def check_sampled(self) -> None:
        """Raise a ValueError if no posterior sample was taken yet."""
        if self.num_samples == 0 and self.skipped_steps > self.num_updates:
            raise ValueError(
                f"No posterior sample was taken: {self.skipped_steps} updates were "
                f"skipped because a gradient was not finite, {self.num_updates} were "
                "done. Look for NaN and infinity in the inputs and the labels "
                "(np.isfinite(x).all()) and for a loss that is not finite; if there "
                "are none, lower the learning rate."
            )
        if self.num_samples == 0:
            raise ValueError(
                f"No posterior sample was taken: {self.num_updates} updates were run "
                f"({self.skipped_steps} skipped for a non-finite gradient), and the "
                f"first sample comes after update {self.burn_in_steps + self.thinning} "
                f"(burn_in_steps={self.burn_in_steps} + thinning={self.thinning}). "
                "Run stage 1 for longer, or lower warmup_steps and burn_in_steps: a "
                "quarter and a half of the planned updates are good values."
            )

    def anchors(self) -> dict[str, np.ndarray]:
        """Return `{path: pre-trained value}` of the variables under a prior."""
        return {s.path: ops.convert_to_numpy(s.anchor) for s in self._under_prior()}

    def excluded_paths(self) -> tuple[str, ...]:
        """Return the paths of the variables that carry no prior."""
        return tuple(s.path for s in self._states if s.prior is None)

    def reset_anchors(self) -> None:
        """Make the variables' present values the anchors, e.g. after `load_weights`.

        Raises:
            ValueError: if updates were done already.
        """
        if self.num_updates:
            raise ValueError(
                f"The anchors cannot be reset after {self.num_updates} updates: the "
                "samples taken so far refer to them. Build a new optimizer."
            )
        for state, variable in zip(
            self._states, self._trainable_variables, strict=True
        ):
            if state.anchor is not None:
                state.anchor.assign(ops.copy(variable))

    def warn_if_noise_dominates(self) -> None:
        """Warn, once, if an update's noise is not small beside the weights' spread."""
        if self._has_warned:
            return
        noise = float(self._noise_per_step.numpy())
        spread = pooled_spread([state.anchor for state in self._under_prior()])
        if spread == 0.0 or noise <= LARGEST_NOISE * spread:
            return
        self._has_warned = True
        rate = float(ops.convert_to_numpy(self.learning_rate))
        cure = f"Lower learning_rate (now {rate:.2g})"
        if self.effective_size != "auto":
            cure += (
                f" or raise effective_size (now {self.effective_size:.2g}); "
                'effective_size="auto" measures one that fits the gradients'
            )
        elif self.noise_scale > self.sampler.auto_noise_scale:
            cure += f" or noise_scale (now {self.noise_scale:.2g})"
        warnings.warn(
            f"The noise of one update, {noise:.2g}, is {noise / spread:.0%} of the "
            f"spread of the pre-trained weights, {spread:.2g}: the model is being "
            f"destroyed and the mask will be random. {cure}.",
            stacklevel=2,
        )

    def load_own_variables(self, store: Any) -> None:
        """Load saved state; that of another model or other arguments is an error.

        A state of another kind of optimizer is left alone with Keras's warning.
        """
        own, run = self.run.split(store)
        if is_foreign(own, self) or self.run.keeps_stage_two(own, run):
            return
        own, anchors = split_non_trainable(own)
        super().load_own_variables(checked_state(own, self.variables, _OWNER))
        self.non_trainable_anchors = anchors
        self.run.loaded = run

    def save_own_variables(self, store: Any) -> None:
        """Save the state, the anchors of non-trainable variables included."""
        super().save_own_variables(store)
        save_owner(store, _OWNER)
        save_non_trainable(store, self.non_trainable_anchors)
        self.run.save(store)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "effective_size": self.effective_size,
            "prior": serialize(self.prior),
            "sampler": serialize(self.sampler),
            "noise_scale": self.noise_scale,
            "warmup_steps": self.warmup_steps,
            "burn_in_steps": self.burn_in_steps,
            "thinning": self.thinning,
            "exclude": list(self.exclude),
            "seed": self.seed,
            "second_moment": self.second_moment,
            "saved_shapes": {p: list(s) for p, s in self._saved_shapes.items()},
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "BayesTuneSGLD":
        """Rebuild from `get_config()`."""
        config = dict(config)
        for name in ("prior", "sampler"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        shapes = config.pop("saved_shapes", {})
        optimizer = super().from_config(config, custom_objects)
        optimizer._saved_shapes = {path: tuple(s) for path, s in shapes.items()}
        return optimizer


def pooled_spread(arrays: list[keras.Variable]) -> float:
    """Root mean square of the scalars, each about the mean of its array."""
    arrays = [ops.cast(array, "float32") for array in arrays]
    squares = sum(float(ops.sum(ops.square(a - ops.mean(a)))) for a in arrays)
    return math.sqrt(squares / sum(math.prod(a.shape) for a in arrays))
