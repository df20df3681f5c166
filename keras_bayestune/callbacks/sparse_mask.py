# Over 300 lines: one callback, a third of it its docstring.
"""End stage 1, build the mask, switch to stage 2 within one `fit`."""

import os
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bayestune.arguments import check_integer
from keras_bayestune.callbacks.backup import Backup
from keras_bayestune.callbacks.carried_state import Carried, Position, carried_state
from keras_bayestune.callbacks.compact_training import CompactTraining
from keras_bayestune.callbacks.plan import Plan
from keras_bayestune.callbacks.progress import stage_one_numbers
from keras_bayestune.callbacks.progress_document import Progress
from keras_bayestune.callbacks.result import Result
from keras_bayestune.callbacks.save_plots import save_plots
from keras_bayestune.callbacks.scale_trace import ScaleTrace
from keras_bayestune.callbacks.switching import switch_optimizer
from keras_bayestune.callbacks.task_head import without_prior_on
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import BayesTuneSGLD, SparseOptimizer, unscaled
from keras_bayestune.paths import variables_by_path
from keras_bayestune.priors import is_marked
from keras_bayestune.tasks import task_head_paths
from keras_bayestune.updates.replicas import strategy_scope


class SparseMaskCallback(keras.callbacks.Callback):
    """Turn the posterior scales into a mask, and fine-tune what it selects.

    Kim & Hospedales, NeurIPS 2023, algorithm 1. A model compiled with
    `BayesTuneSGLD` samples until `sampling_epochs` or `sampling_steps` are over, or
    until `fit` ends. Then the callback builds the mask, gives every weight under the
    prior its pre-trained value back (and non-trainable ones, such as the statistics
    of batch normalisation, theirs) and, given a `finetune_optimizer`, goes on
    within the same `fit` with `SparseOptimizer(finetune_optimizer, mask)`. Weights
    without a prior keep what they learned and are in the mask as a whole. Of a
    KerasHub task, what lies outside the backbone is left without a prior, unless the
    optimizer's `exclude` or a `WithPrior` says which weights carry it.

    After it: `mask`, `scores` ({path: posterior mean scale}), `anchors` ({path:
    pre-trained value}, batch-normalisation statistics included). Each epoch logs
    `stage`, `samples`, `skipped_steps`, and in stage 1 `share_above_threshold` if
    there is one.

    Args:
        fraction: Share of the scalars under the prior to select, in (0, 1], 0.005 if
            neither it nor `threshold` is given; or `"auto"` for the knee of the
            sorted scales.
        threshold: Select the scalars whose scale is above it, in units of the weight.
        sampling_epochs: Epochs of stage 1.
        sampling_steps: Batches of stage 1.
        finetune_optimizer: A Keras optimizer, not built yet; `None` only builds the
            mask, at the end of stage 1.
        restore_anchors: Whether to start stage 2 from the pre-trained values.
        per_layer: As in `SparseMask.from_scores`.
        exclude_head: Whether the head of a KerasHub task carries no prior.
        trace_scalars: How many scalars to follow sample by sample, for `trace` and the
            logged `effective_sample_size` (their median). Costs one read of the
            state per batch.
        plot_dir: Folder for `scales.png`, `mask.png` and, with a trace, `trace.png`,
            drawn at the end of stage 1; needs matplotlib.
        backup_dir: Folder for `state.safetensors`, the whole state of the run,
            replaced at the start of every epoch and deleted at the end of `fit`. A
            new process that runs the same script goes on from it, bit for bit, in
            either stage; the model must be built before `fit`.
        compact_gradients: Whether stage 2 computes the gradients of Dense, EinsumDense
            and Embedding layers at the selected scalars only: "auto" where that is
            estimated to be faster, `True` wherever it can be, `False` nowhere.

    Raises:
        TypeError: if the model is not compiled with `BayesTuneSGLD`.
        ValueError: if an argument is out of range, if the planned steps end before
            the first sample, if stage 2 would have no epoch left, or if the state in
            `backup_dir` is damaged or of another run.

    Example:
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> optimizer = BayesTuneSGLD(1e-3, warmup_steps=2, burn_in_steps=4, thinning=1)
    >>> model.compile(optimizer, loss="mse")
    >>> select = SparseMaskCallback(
    ...     fraction=0.1,
    ...     sampling_epochs=1,
    ...     finetune_optimizer=keras.optimizers.Adam(1e-2),
    ... )
    >>> x, y = np.random.rand(32, 4), np.random.rand(32, 8)
    >>> history = model.fit(
    ...     x, y, batch_size=4, epochs=3, callbacks=[select], verbose=0
    ... )
    >>> select.mask.count
    4
    """

    def __init__(
        self,
        fraction: float | str | None = None,
        threshold: float | None = None,
        sampling_epochs: int | None = None,
        sampling_steps: int | None = None,
        finetune_optimizer: keras.optimizers.Optimizer | None = None,
        restore_anchors: bool = True,
        per_layer: Any = None,
        exclude_head: bool = True,
        trace_scalars: int = 0,
        plot_dir: str | os.PathLike[str] | None = None,
        backup_dir: str | os.PathLike[str] | None = None,
        compact_gradients: bool | str = "auto",
    ):
        """Check the arguments."""
        super().__init__()
        if fraction is None and threshold is None:
            fraction = 0.005
        self.plan = Plan(
            fraction, threshold, sampling_epochs, sampling_steps, finetune_optimizer
        )
        self.restore_anchors = restore_anchors
        self.per_layer = per_layer
        self.exclude_head = exclude_head
        self.trace_scalars = check_integer("trace_scalars", trace_scalars, 0)
        self.plot_dir = None if plot_dir is None else Path(plot_dir)
        self._backup = None if backup_dir is None else Backup(Path(backup_dir))
        self._compact = CompactTraining(compact_gradients)
        self._result: Result | None = None
        self._numbers: dict[str, float] = {}
        self._trace: ScaleTrace | None = None
        self._batches_before_epoch = 0
        self._batches = 0
        self._is_first_epoch = True
        self._epoch = 0
        self._is_over = False
        self._carried: Carried | None = None

    @property
    def mask(self) -> SparseMask:
        """The mask; a ValueError before the end of stage 1."""
        return self._finished().mask

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Posterior mean scale of each scalar, by path; as `mask`."""
        return self._kept(self._finished().scores)

    @property
    def anchors(self) -> dict[str, np.ndarray]:
        """Values at the start, by path; as `mask`."""
        return self._kept(self._finished().anchors)

    @staticmethod
    def _kept(arrays: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
        if arrays is None:
            raise ValueError(
                "A model that was saved after the end of `fit` does not hold scores "
                "and anchors of stage 1, only its mask. Take them from the callback "
                "of that `fit`."
            )
        return arrays

    @property
    def trace(self) -> np.ndarray:
        """Sampled scales of the scalars followed, shape `(samples, scalars)`."""
        if self._trace is None:
            raise ValueError(
                "No scale was followed. Use SparseMaskCallback(trace_scalars=64) and "
                "run `fit`."
            )
        return self._trace.samples()

    def _finished(self) -> Result:
        if self._result is None:
            raise ValueError(
                "Stage 1 has not ended yet, so there is no mask. Run model.fit(..., "
                "callbacks=[callback]) first."
            )
        return self._result

    @property
    def metadata(self) -> dict[str, Any]:
        """How the mask was chosen, for the file of a delta."""
        return self._finished().metadata

    def set_model(self, model: keras.Model) -> None:
        """Have the optimizer carry the state of the run through Keras's files."""
        super().set_model(model)
        # Now, because another callback may load a state before this one begins.
        self._attach()

    def _attach(self) -> None:
        optimizer = unscaled(self.model.optimizer)
        if isinstance(optimizer, BayesTuneSGLD | SparseOptimizer):
            optimizer.run.attach(
                lambda: carried_state(
                    self.model,
                    self._progress(self._epoch),
                    Position(
                        self._epoch,
                        self._batches_before_epoch,
                        self.params.get("steps"),
                        self._is_over,
                    ),
                ),
                can_switch=self.plan.finetune_optimizer is not None,
            )

    def _take_carried(self) -> None:
        """Go on from what was loaded with the optimizer, if anything was."""
        optimizer = unscaled(self.model.optimizer)
        if not isinstance(optimizer, BayesTuneSGLD | SparseOptimizer):
            return
        taken = optimizer.run.take()
        if taken is None:
            return
        document, arrays, stage_two = taken
        self._carried = Carried(document, arrays)
        progress = self._carried.progress
        if stage_two is not None and progress.result is not None:
            with strategy_scope(self.model):
                self._switch(progress.result.mask)
            unscaled(self.model.optimizer).load_own_variables(stage_two)
        self._carried.restore(self.model)
        self._go_on(progress)

    def on_train_begin(self, logs: Any = None) -> None:
        """Check the plan before the first step."""
        self._is_first_epoch, self._is_over = True, False
        self._compact.set_model(self.model)
        self._carried = None
        self._take_carried()
        if self._result is not None:
            self._restore_backup()
            return  # stage 2 goes on in another `fit`
        self.plan.check_fit(
            self._stage_one(), self.params["epochs"], self.params.get("steps")
        )
        if not self.model.built:
            raise ValueError(
                f"The model {self.model.name!r} is not built, so there are no weights "
                "yet that stage 1 could start from. Build it before `fit`: begin it "
                "with keras.Input, or call it on a batch."
            )
        self._exclude_head()
        optimizer = self._stage_one()
        if optimizer.built and optimizer.num_updates == 0:
            optimizer.reset_anchors()
        if optimizer.num_updates == 0 or not optimizer.non_trainable_anchors:
            optimizer.non_trainable_anchors = [
                np.array(ops.convert_to_numpy(v)) for v in self._statistics()
            ]
        self._attach()  # to another one, if a head was excluded
        self._restore_backup()

    def _statistics(self) -> list[keras.Variable]:
        """Non-trainable variables that may change, such as moving averages."""
        return [
            v
            for v in self.model.non_trainable_variables
            if keras.backend.is_float_dtype(v.dtype)
        ]

    def _restore_backup(self) -> None:
        """Go on from the backup, if there is one."""
        saved = None if self._backup is None else self._backup.open()
        if saved is None:
            return
        model, progress = self.model, saved.progress
        with strategy_scope(model):
            if not model.built:
                raise ValueError(
                    "To go on from `backup_dir` the model must be built before `fit`: "
                    "give it an Input, or call it on a batch first."
                )
            if progress.result is not None and self._result is None:
                self._switch(progress.result.mask)
            elif progress.result is None and self._result is not None:
                raise ValueError(
                    "The backup is of stage 1, but this callback and model are in "
                    "stage 2. Make the model and the callback anew, as a new process "
                    "would."
                )
            model.optimizer.build(model.trainable_variables)
        saved.restore(model)
        if progress.result is None:
            self._stage_one().non_trainable_anchors = progress.non_trainable
        self._go_on(progress)
        self._carried = None  # older, if anything was loaded
        # As keras.callbacks.BackupAndRestore does (Keras 3.15).
        model._initial_epoch = progress.epoch

    def _go_on(self, progress: Progress) -> None:
        """Know what the callback of the interrupted `fit` knew."""
        self._result, self._numbers = progress.result, progress.numbers
        self._batches = progress.batches
        means = [] if self._result is not None else self._stage_one().running_means()
        self._trace = None
        if progress.trace is not None:
            self._trace = ScaleTrace(means, self.trace_scalars)
            self._trace.restore(*progress.trace)

    def _progress(self, epoch: int) -> Progress:
        trace = None if self._trace is None else self._trace.state()
        statistics = (
            self._stage_one().non_trainable_anchors if self._result is None else []
        )
        return Progress(
            epoch, self._batches, self._numbers, self._result, statistics, trace
        )

    def _write_backup(self, epoch: int) -> None:
        if self._backup is not None:
            self._backup.save(self.model, self._progress(epoch))

    def _stage_one(self) -> BayesTuneSGLD:
        optimizer = unscaled(self.model.optimizer)
        if not isinstance(optimizer, BayesTuneSGLD):
            raise TypeError(
                "SparseMaskCallback needs a model compiled with BayesTuneSGLD. "
                f"Received: {type(optimizer).__name__}. Use model.compile("
                "optimizer=BayesTuneSGLD(learning_rate=1e-4), ...)."
            )
        return optimizer

    def _exclude_head(self) -> None:
        """Rebuild the optimizer so that a KerasHub task's head carries no prior."""
        optimizer = self._stage_one()
        told = optimizer.exclude or any(
            is_marked(v) for v in self.model.trainable_variables
        )
        head = task_head_paths(self.model)
        if not self.exclude_head or told or not head or optimizer.num_updates:
            return
        with strategy_scope(self.model):
            switch_optimizer(self.model, without_prior_on(head, optimizer))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember where the epoch starts, and write the backup."""
        if self._is_first_epoch:
            self._take_carried()  # what another callback has loaded since
            if self._carried is not None:
                self._carried.check_epoch(epoch)
            # A `fit` that goes on from an earlier one counts the batches of that, too.
            steps = self.params.get("steps") or 0
            self._batches = max(self._batches, epoch * steps)
            self._end_stage_one_if_due(epoch)
        else:
            # Not at the end of the last one, which other callbacks have yet to end.
            self._write_backup(epoch)
        self._is_first_epoch = False
        self._epoch = epoch
        self._batches_before_epoch = self._batches
        self._compact.start()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Let the step use compact gradients, if it has them."""
        self._compact.on_train_batch_begin(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Follow the trace; end stage 1 if it was planned by batches."""
        # With `steps_per_execution` not every batch ends with a call.
        self._batches = self._batches_before_epoch + batch + 1
        if self._result is not None:
            return
        if self.trace_scalars:
            optimizer = self._stage_one()
            if self._trace is None:
                self._trace = ScaleTrace(optimizer.running_means(), self.trace_scalars)
            self._trace.record(optimizer)
        steps = self.plan.sampling_steps
        if steps is not None and self._batches >= steps:
            self._end_stage_one()
            self._compact.start()

    def _end_stage_one_if_due(self, epoch: int) -> None:
        """End stage 1 if its last batch was done when the state was saved.

        Another callback may have saved it before this one could end the stage.
        """
        if self._carried is None or self._result is not None:
            return
        epochs, steps = self.plan.sampling_epochs, self.plan.sampling_steps
        if (epochs is not None and epoch >= epochs) or (
            steps is not None and self._batches >= steps
        ):
            self._end_stage_one()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """End stage 1 if it was planned by epochs; log where the run is."""
        logs = {} if logs is None else logs
        if self._result is not None:
            self._log(logs, stage=2)
            return
        optimizer = self._stage_one()
        optimizer.warn_if_noise_dominates()
        self._numbers = stage_one_numbers(optimizer, self.plan.threshold, self._trace)
        self._log(logs, stage=1)
        epochs = self.plan.sampling_epochs
        if epochs is not None and epoch + 1 >= epochs:
            self._end_stage_one()

    def _log(self, logs: dict[str, Any], stage: int) -> None:
        logs.update(stage=stage, skipped_steps=self._skipped_steps(), **self._numbers)

    def _skipped_steps(self) -> int:
        """Updates skipped for a non-finite gradient, in both stages."""
        optimizer = unscaled(self.model.optimizer)
        if self._result is None:
            return self._stage_one().skipped_steps
        if isinstance(optimizer, SparseOptimizer):
            return self._result.skipped_steps + optimizer.skipped_steps
        return self._result.skipped_steps

    def on_train_end(self, logs: Any = None) -> None:
        """Build the mask if stage 1 lasted until here; report skipped steps."""
        self._end_fit()
        self._is_over = True
        optimizer = unscaled(self.model.optimizer)
        if isinstance(optimizer, BayesTuneSGLD | SparseOptimizer):
            optimizer.run.detach()
        if self._backup is not None:
            self._backup.delete()

    def _end_fit(self) -> None:
        self._compact.on_train_end()
        if self._result is None:
            self._end_stage_one()
        elif self.restore_anchors and isinstance(
            unscaled(self.model.optimizer), BayesTuneSGLD
        ):
            # `fit` may have set moving averages after the mask was built.
            self._restore()
        skipped = self._skipped_steps()
        if skipped:
            warnings.warn(
                f"{skipped} updates were skipped because a gradient was not finite. "
                "Look at the data and the loss; a lower learning rate or "
                "`global_clipnorm` may help.",
                stacklevel=2,
            )

    def _end_stage_one(self) -> None:
        optimizer = self._stage_one()  # reading self.model syncs the state on JAX
        scores = optimizer.posterior_scales()
        self._numbers = stage_one_numbers(optimizer, self.plan.threshold, self._trace)
        excluded = optimizer.excluded_paths()
        whole = {
            path: tuple(v.shape)
            for path, v in variables_by_path(self.model.trainable_variables).items()
            if path in excluded
        }
        mask = SparseMask.from_scores(
            scores,
            fraction=self.plan.fraction,
            threshold=self.plan.threshold,
            per_layer=self.per_layer,
            always=whole,
        ).in_order_of(self.model.trainable_variables)
        self._result = Result(
            mask=mask,
            scores=scores,
            anchors=self._anchors_by_path(optimizer),
            skipped_steps=optimizer.skipped_steps,
            metadata={
                "selector": "posterior mean scale",
                "fraction": self.plan.fraction,
                "threshold": self.plan.threshold,
                "samples": optimizer.num_samples,
                "effective_size": optimizer.current_effective_size(),
                "optimizer": optimizer.get_config(),
            },
        )
        if self.plot_dir is not None:
            samples = None if self._trace is None else self._trace.samples()
            save_plots(self.plot_dir, scores, mask, samples)
        if self.plan.finetune_optimizer is not None:
            # As at the end of a `fit`: moving averages, which the head keeps.
            optimizer.finalize_variable_values(self.model.trainable_variables)
        if self.restore_anchors:
            self._restore()
        with strategy_scope(self.model):
            self._switch(mask)

    def _switch(self, mask: SparseMask) -> None:
        """Begin stage 2, if there is one."""
        if self.plan.finetune_optimizer is not None:
            stage_two = SparseOptimizer(self.plan.finetune_optimizer, mask)
            switch_optimizer(self.model, stage_two)
            self._attach()

    def _anchors_by_path(self, optimizer: BayesTuneSGLD) -> dict[str, np.ndarray]:
        """`{path: value before stage 1}`, with the paths of `base_values`."""
        trained = variables_by_path(optimizer._trainable_variables)
        pairs = [(trained[path], a) for path, a in optimizer.anchors().items()]
        values = {id(v): a for v, a in [*pairs, *self._anchors_of_statistics()]}
        paths = variables_by_path(self.model.weights)
        return {p: values[id(v)] for p, v in paths.items() if id(v) in values}

    def _anchors_of_statistics(self) -> list[tuple[keras.Variable, np.ndarray]]:
        variables = self._statistics()
        anchors = self._stage_one().non_trainable_anchors
        shapes = [tuple(v.shape) for v in variables]
        if shapes != [anchor.shape for anchor in anchors]:
            raise ValueError(
                f"The model has {len(variables)} non-trainable float variables, and "
                f"the state of stage 1 was begun with {len(anchors)} or with others. "
                "Keep the layers and their `trainable` as they were when it began."
            )
        return list(zip(variables, anchors, strict=True))

    def _restore(self) -> None:
        anchors = self.anchors
        for path, variable in variables_by_path(self.model.weights).items():
            if path in anchors:
                variable.assign(anchors[path])
