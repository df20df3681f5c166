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
from keras_bayestune.optimizers.weight_block import WeightBlock, places_of
from keras_bayestune.paths import variable_paths
from keras_bayestune.priors import LaplacePrior, assign_priors
from keras_bayestune.samplers import Collapsed, Sampler, Step
from keras_bayestune.updates.chain import Chain, Schedule, next_step
from keras_bayestune.updates.conditional import branch
from keras_bayestune.updates.elementwise import Compiled
from keras_bayestune.updates.langevin import (
    Lines,
    Moments,
    Weight,
    adam_update,
    langevin_update,
    with_sample,
)
from keras_bayestune.updates.mean_squares import squares_of
from keras_bayestune.updates.replicas import (
    assign_each,
    check_have_values,
    clear_gradients,
    creation_scope,
    dense_gradients,
    sum_over_replicas,
    update_each,
    without_gradient,
)
from keras_bayestune.updates.rows import split

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
    `burn_in_steps` are thrown away. From then on every `thinning`-th update is a
    sample, and the scales are averaged over the samples. A scalar with a large
    posterior mean has to move for the task.

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
            number. With `"auto"`, whose N says nothing about the data, `Collapsed()`
            takes 0.1, which selected better in short runs: a cold posterior
            (Wenzel et al. 2020) of temperature 0.01.
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

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(
        ...     optimizer=BayesTuneSGLD(
        ...         1e-3, warmup_steps=4, burn_in_steps=8, thinning=2, seed=0
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
        self._paths = variable_paths(variables)
        # Those that the patterns were written for, if this is a loaded model.
        names = saved_paths(self._saved_shapes, variables)
        priors = assign_priors(variables, names, self.prior, self.exclude)
        self._saved_shapes = {
            name: tuple(v.shape) for name, v in zip(names, variables, strict=True)
        }
        super().build(variables)
        decays = [
            float(self.weight_decay or 0.0) if self._use_weight_decay(v) else 0.0
            for v in variables
        ]
        metric = self.sampler.metric
        places = places_of(variables, priors, decays, metric)
        self._num_rows = len({p.row for p in places if priors[p.indices[0]]})
        seed = draw_seed() if self.seed is None else self.seed
        size = self.effective_size if self.effective_size != "auto" else 0.0
        self._chain = Chain(
            count=self._add_scalar("update_count", 0, "int32"),
            samples=self._add_scalar("sample_count", 0, "int32"),
            skipped=self._add_scalar("skipped_count", 0, "int32"),
            effective_size=self._add_scalar("effective_size", float(size), "float32"),
            mean_square=self._add_scalar(
                "mean_square",
                0.0,
                "float32",
                (self._num_rows,) if metric.per_tensor else (),
            ),
            noise_per_step=self._add_scalar("noise_per_step", 0.0, "float32"),
            seed=self._add_scalar("seed", seed, "int32"),
        )
        with creation_scope():
            self._blocks = [
                WeightBlock.create(
                    self,
                    place,
                    [variables[i] for i in place.indices],
                    priors[place.indices[0]],
                    decays[place.indices[0]],
                    self.sampler,
                    self.second_moment,
                )
                for place in places
            ]
        self._under_prior = [block for block in self._blocks if block.prior]
        # One for all blocks that differ in arrays only.
        self._update = functools.cache(
            lambda prior, decay, start: (
                Compiled(
                    langevin_update,
                    sampler=self.sampler,
                    prior=prior,
                    decay=decay,
                    first=start,
                )
                if prior
                else Compiled(adam_update, decay=decay)
            )
        )
        self._score = functools.cache(
            lambda prior: Compiled(with_sample, sampler=self.sampler, prior=prior)
        )

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
        if not self.built and trainable_variables is not None:
            with keras.name_scope(self.name):
                self.build(trainable_variables)
        variables = trainable_variables or self._trainable_variables
        # Keras applies constraints after a skipped update as well, and most round.
        constrained = [v for v in self._trainable_variables if v.constraint]
        before = [ops.copy(variable) for variable in constrained]
        skipped = ops.copy(self._chain.skipped) if constrained else None
        super().apply(dense_gradients(grads, variables), trainable_variables)
        if constrained:
            was_skipped = ops.not_equal(self._chain.skipped, skipped)
            update_each(_keep_where, before, constrained, was_skipped)
        clear_gradients(variables)

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
        with without_gradient():
            indices = map(self._get_variable_index, trainable_variables)
            given = dict(zip(indices, grads, strict=True))
            gradients = [block.gradient(given) for block in self._blocks]
            squares = [
                None
                if gradient is None
                else squares_of(
                    gradient, {k: tuple(v.shape) for k, v in block.lines.items()}
                )
                for block, gradient in zip(self._blocks, gradients, strict=True)
            ]
            step = self._next_step(squares, given, learning_rate)
            self._move(gradients, squares, given, step)

    def _next_step(
        self, squares: list[Any], given: dict[int, Tensor], learning_rate: Tensor
    ) -> Step:
        """Work out and store the scalars of this update."""
        totals = [None if found is None else found[0] for found in squares]
        step, chain = next_step(
            Chain(*map(ops.convert_to_tensor, self._chain)),
            [total for total in totals if total is not None],
            [
                ops.zeros((), "float32") if total is None else total
                for block, total in zip(self._blocks, totals, strict=True)
                if block.prior
            ],
            [block.num_scalars(given) for block in self._under_prior],
            self._num_rows,
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
        )
        assign_each(list(zip(self._chain, chain, strict=True)))
        return step

    def _move(
        self,
        gradients: list[Tensor | None],
        squares: list[Any],
        given: dict[int, Tensor],
        step: Step,
    ) -> None:
        """Update each block that has a gradient, and take a sample if one is due."""
        changes: list[tuple[keras.Variable, Tensor]] = []
        sampled = []
        for block, gradient, found in zip(
            self._blocks, gradients, squares, strict=True
        ):
            if gradient is None:
                continue
            old = block.weight()
            kept = block.kept(old, given)
            update = self._update(block.prior, block.decay, block.place.start)
            if block.prior is None:
                new = update(old, gradient, step)
            else:
                own = step.of_row(block.place.row, self.sampler)
                anchor = ops.convert_to_tensor(block.anchor)
                lines = Lines(block.line_state(), found[1])
                new, line_state = update(old, anchor, gradient, lines, own)
                changes += [(block.lines[k], v) for k, v in line_state.items()]
                sampled.append((block, new, anchor))
            changes += block.changes(block.restored(new, kept, given))
        assign_each(changes + self._sample(sampled, given, step))

    def _sample(
        self,
        updated: list[tuple[WeightBlock, Weight, Tensor]],
        given: dict[int, Tensor],
        step: Step,
    ) -> list[tuple[keras.Variable, Tensor]]:
        """Return the running moments after this update, by variable."""
        old = [block.moments() for block, _, _ in updated]

        def take() -> tuple[Tensor, ...]:
            found = []
            for (block, weight, anchor), moments in zip(updated, old, strict=True):
                kept = block.kept(moments, given)
                new = self._score(block.prior)(moments, weight, anchor, step)
                found.append(block.restored(new, kept, given))
            return flat(found)

        def flat(trees: list[Moments]) -> tuple[Tensor, ...]:
            return tuple(t for moments in trees for t in moments if t is not None)

        variables = [v for block, _, _ in updated for v in block.moment_variables()]
        new = branch(step.sample, take, lambda: flat(old), harmless=True)
        return list(zip(variables, new, strict=True))

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
        return _to_numpy(self._by_path("mean"))

    def running_means(self) -> list[tuple[str, Tensor]]:
        """Return the path and the running mean of each variable under a prior."""
        return list(self._by_path("mean").items())

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
        return _to_numpy(self._by_path("second_moment"))

    def _by_path(self, kind: str) -> dict[str, Tensor]:
        """Return an array of the blocks under a prior, in the order of the weights."""
        parts: dict[int, Tensor] = {}
        for block in self._under_prior:
            row = ops.convert_to_tensor(getattr(block, kind))
            parts |= zip(block.place.indices, split(row, block.shapes), strict=True)
        return {self._paths[i]: parts[i] for i in sorted(parts)}

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
        return _to_numpy(self._by_path("anchor"))

    def excluded_paths(self) -> tuple[str, ...]:
        """Return the paths of the variables that carry no prior."""
        excluded = [b.place.indices for b in self._blocks if b.prior is None]
        return tuple(self._paths[i] for i in sorted(sum(excluded, ())))

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
        for block in self._under_prior:
            block.reset_anchor()

    def warn_if_noise_dominates(self) -> None:
        """Warn, once, if an update's noise is not small beside the weights' spread."""
        if self._has_warned:
            return
        noise, spread = self._noise_and_spread()
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

    def relative_noise(self) -> float:
        """Return the noise of one update over the spread of the pre-trained weights."""
        noise, spread = self._noise_and_spread()
        return noise / spread if spread else 0.0

    def fraction_without_gradient(self) -> float | None:
        """Return of how many scalars under a prior no gradient came in burn-in.

        Such are the rows of tokens that the data do not use. `None` if the sampler's
        metric keeps no mean squares of single scalars, or of rows and columns.
        """
        counts = [block.num_without_gradient() for block in self._under_prior]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return None
        size = sum(math.prod(mean.shape) for _, mean in self.running_means())
        return sum(known) / size

    def _noise_and_spread(self) -> tuple[float, float]:
        noise = float(self._chain.noise_per_step.numpy())
        return noise, pooled_spread(self._by_path("anchor").values())

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

    def __repr__(self) -> str:
        """Show the plan of the run; its state may be in the middle of a step."""
        return (
            f"<BayesTuneSGLD {self.sampler}, warmup_steps={self.warmup_steps}, "
            f"burn_in_steps={self.burn_in_steps}, thinning={self.thinning}>"
        )

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


def _keep_where(old: Tensor, variable: Any, condition: Tensor) -> None:
    variable.assign(ops.where(condition, old, ops.convert_to_tensor(variable)))


def _to_numpy(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {path: ops.convert_to_numpy(tensor) for path, tensor in tensors.items()}


def pooled_spread(arrays: Iterable[Tensor]) -> float:
    """Root mean square of the scalars, each about the mean of its array."""
    arrays = [ops.cast(array, "float32") for array in arrays]
    squares = sum(float(ops.sum(ops.square(a - ops.mean(a)))) for a in arrays)
    return math.sqrt(squares / sum(math.prod(a.shape) for a in arrays))
