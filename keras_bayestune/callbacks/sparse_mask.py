# Over 300 lines: one callback, a third of it its docstring.
"""End stage 1, build the mask, switch to stage 2 within one `fit`."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_bayestune.budgets import Budget
from keras_bayestune.callbacks import beside, stage_one
from keras_bayestune.callbacks.announcements import beginning, resuming, switching
from keras_bayestune.callbacks.backup import Backup
from keras_bayestune.callbacks.compact_training import CompactTraining
from keras_bayestune.callbacks.health import Health, health_of
from keras_bayestune.callbacks.learning import Learning
from keras_bayestune.callbacks.plan import Plan
from keras_bayestune.callbacks.rehearsal import rehearse
from keras_bayestune.callbacks.run import Run
from keras_bayestune.callbacks.run_state import kept
from keras_bayestune.callbacks.save_plots import save_plots
from keras_bayestune.callbacks.skipped_updates import SkippedUpdates
from keras_bayestune.callbacks.stage_two_callbacks import (
    StageTwoCallbacks,
    refuse_swapping,
)
from keras_bayestune.callbacks.stage_two_start import (
    STARTS,
    check_start,
    give_to_selected,
    selected_values,
)
from keras_bayestune.callbacks.task_head import exclude_head
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import BayesTuneSGLD, SparseOptimizer, unscaled
from keras_bayestune.updates.trainer_state import keep_changes


class SparseMaskCallback(keras.callbacks.Callback):
    """Turn the posterior scales into a mask, and fine-tune what it selects.

    Kim & Hospedales, NeurIPS 2023, algorithm 1. A model compiled with
    `BayesTuneSGLD` samples until `selection_epochs` or `selection_steps` are over, or
    until `fit` ends. Then the callback builds the mask, gives every weight under the
    prior its pre-trained value back (and non-trainable ones, such as the statistics
    of batch normalisation, theirs) and, given a `finetune_optimizer`, goes on within
    the same `fit` with `SparseOptimizer(finetune_optimizer, mask)`; without one it ends
    the `fit`. Weights without a prior keep what they learned and are in the mask as a
    whole. Of a KerasHub task, what lies outside the backbone is left without a prior,
    unless the optimizer's `exclude` or a `WithPrior` says which weights carry it.

    After it: `mask`, `delta` (what a task ships), `scores` ({path: posterior mean
    scale}), `anchors` ({path: pre-trained value}, batch-normalisation statistics
    included). `health` says what stage 1 is worth.

    Each epoch logs `samples`, `stage` if there are two, `skipped_steps` if there are
    any, and in stage 1 `fraction_above_threshold` and `effective_sample_size` if there
    are a threshold and a trace. Unless `verbose=0`, `fit` prints how stage 1 begins,
    its health and the switch.

    A callback serves one model. Used again on it, it trains stage 2 on, or, without a
    `finetune_optimizer`, samples for longer and makes a new mask.

    Args:
        fraction: Fraction of the scalars under the prior to select, in (0, 1], 0.005 if
            neither it nor `threshold` is given; or `"auto"` for the knee of the
            sorted scales.
        threshold: Select the scalars whose scale is above it, in units of the weight.
        selection_epochs: Epochs of stage 1, from the first one of this `fit`.
        selection_steps: Batches of stage 1, likewise.
        finetune_optimizer: A Keras optimizer, not built yet; `None` only builds the
            mask, at the end of stage 1.
        stage_2_callbacks: Keras callbacks that begin at the switch and see nothing of
            stage 1: what stops, saves or slows down by a metric, such as
            `EarlyStopping`. They begin anew in a `fit` that is resumed.
        stage_2_start: What the weights under the prior are when stage 1 ends:
            "anchors", their pre-trained values; "last values", the same, but for the
            selected scalars, which keep what the last update gave them (a moving
            average, if the optimizer has `use_ema`); "last state", all as stage 1 left
            them, of which no delta can be made.
        budget: Who competes with whom, as in `SparseMask.from_scores`.
        exclude_head: Whether the head of a KerasHub task carries no prior.
        trace_scalars: How many scalars to follow sample by sample, for `trace` and the
            logged `effective_sample_size` (their median). Costs one read of the
            state per batch; needs arviz-stats.
        plot_dir: Folder for `scales.png`, `mask.png` and, with a trace, `trace.png`,
            drawn at the end of stage 1; needs matplotlib.
        backup_dir: Folder for `state.safetensors`, the whole state of the run,
            replaced at the start of every epoch and deleted at the end of `fit`. A
            new process that runs the same script goes on from it, bit for bit, in
            either stage; the model must be built before `fit`. The order of arrays
            that `fit` shuffles goes on as well, except on TensorFlow, where tf.data
            draws it from a state that cannot be read.
        compact_gradients: Whether stage 2 computes the gradients of Dense, EinsumDense
            and embedding layers, heads of tied tables included, and of convolutions of
            patches at the selected scalars only: "auto" where that is
            estimated to be faster, `True` wherever it can be, `False` nowhere.
        max_skipped_steps: `fit` ends with an error when so many updates in a row are
            skipped because a gradient is not finite. A look every so many batches.

    Raises:
        ImportError: if a package is missing that `trace_scalars` needs.
        TypeError: if the model is not compiled with `BayesTuneSGLD`.
        ValueError: if an argument is out of range or does not fit the model, if the
            planned steps end before the first sample, if stage 2 would have no epoch
            left, if a callback cannot work in stage 2, if this one was used for another
            model, or if the state in `backup_dir` is damaged or of another run; before
            the first step.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        >>> optimizer = BayesTuneSGLD(1e-3, warmup_steps=2, burn_in_steps=4, thinning=1)
        >>> model.compile(optimizer, loss="mse")
        >>> select = SparseMaskCallback(
        ...     0.1, selection_epochs=1, finetune_optimizer=keras.optimizers.Adam(1e-2)
        ... )
        >>> x, y = np.random.rand(32, 4), np.random.rand(32, 8)
        >>> history = model.fit(x, y, 4, epochs=3, verbose=0, callbacks=[select])
        >>> select.mask.count
        4
    """

    def __init__(
        self,
        fraction: float | str | None = None,
        threshold: float | None = None,
        selection_epochs: int | None = None,
        selection_steps: int | None = None,
        finetune_optimizer: keras.optimizers.Optimizer | None = None,
        stage_2_callbacks: Iterable[keras.callbacks.Callback] = (),
        stage_2_start: str = "anchors",
        budget: Budget | None = None,
        exclude_head: bool = True,
        trace_scalars: int = 0,
        plot_dir: str | os.PathLike[str] | None = None,
        backup_dir: str | os.PathLike[str] | None = None,
        compact_gradients: bool | str = "auto",
        max_skipped_steps: int = 20,
    ):
        """Check the arguments."""
        super().__init__()
        if fraction is None and threshold is None:
            fraction = 0.005
        self.plan = Plan(
            fraction,
            threshold,
            selection_epochs,
            selection_steps,
            finetune_optimizer,
            budget,
        )
        self._stage_two = StageTwoCallbacks(stage_2_callbacks, finetune_optimizer)
        self.stage_2_start = check_start(stage_2_start)
        self.exclude_head = exclude_head
        self.plot_dir = None if plot_dir is None else Path(plot_dir)
        self._backup = None if backup_dir is None else Backup(Path(backup_dir))
        self._compact = CompactTraining(compact_gradients)
        self._skips = SkippedUpdates(max_skipped_steps)
        self._run = Run(self.plan, trace_scalars)
        self._begin_fit()

    def _begin_fit(self) -> None:
        """Forget the last `fit`, which may have ended with an exception."""
        self._run.begin_fit()
        self._stage_two.forget()
        self._skips.begin()
        self._learning = Learning()
        self._beside: keras.callbacks.CallbackList | None = None
        self._is_first_epoch = True
        self._has_ended_stage_one = self._has_trained_stage_two = False
        self._is_cut_short = False  # stage 1, if it is all of the plan
        self._last_values: dict[str, np.ndarray] = {}  # to start stage 2 from
        self._others_are_to_restart = False
        self._news: list[str] = []  # to be printed between two epochs

    def __repr__(self) -> str:
        """Show the plan, and the mask once there is one."""
        result = self._run.result
        found = "no mask yet" if result is None else repr(result.mask)
        return f"<SparseMaskCallback {self.plan}: {found}>"

    @property
    def mask(self) -> SparseMask:
        """The mask; a ValueError before the end of stage 1."""
        return self._run.finished.mask

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Posterior mean scale of each scalar, by path; as `mask`."""
        return kept(self._run.finished.scores)

    @property
    def anchors(self) -> dict[str, np.ndarray]:
        """Values at the start, by path; as `mask`."""
        return kept(self._run.finished.anchors)

    @property
    def health(self) -> Health:
        """What stage 1 is worth: numbers, warnings, a suggested fraction; as `mask`."""
        return Health(**self._run.finished.metadata["health"])

    @property
    def trace(self) -> np.ndarray:
        """Sampled scales of the scalars followed, shape `(samples, scalars)`."""
        if (samples := self._run.samples) is None:
            raise ValueError(
                "No scale was followed. Use SparseMaskCallback(trace_scalars=64) and "
                "run `fit`."
            )
        return samples

    @property
    def trace_names(self) -> list[str]:
        """Path and flat index of the scalars followed, in the order of `trace`."""
        return [] if self._run.trace is None else self._run.trace.names()

    @property
    def delta(self) -> SparseDelta:
        """What the model has now in place of its base; as `mask`.

        Made anew at each look. `SparseDelta.from_model(model, callback, metadata=...)`
        adds metadata of yours.
        """
        return SparseDelta.from_model(self.model, self)

    @property
    def metadata(self) -> dict[str, Any]:
        """How the mask was made, for the file of a delta."""
        return self._run.finished.metadata

    def set_model(self, model: keras.Model) -> None:
        """Have the optimizer carry the state of the run through Keras's files."""
        self._run.serve(model)
        super().set_model(model)
        # Now, because another callback may load a state before this one begins.
        self._run.attach(self.model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Find out where the run is."""
        run, model = self._run, self.model
        self._begin_fit()
        run.steps = self.params.get("steps")
        self._compact.set_model(model)
        if run.result is not None and not self._is_in_stage_two():
            stage_one.stage_one_optimizer(model)
            run.begin_stage_one()  # the chain goes on, or a new one begins
        run.take_carried(model)
        if run.result is None:
            stage_one.check_built(model)
            if self.exclude_head:
                exclude_head(model)
            stage_one.begin_chain(model)
            run.attach(model)  # to another optimizer, if a head was excluded
        if self._backup is not None:
            run.restore(self._backup, model)
        self._beside = beside.callback_list()
        if self._beside is not None:
            beside.Last(self._beside, self._end_fit)
            if self.plan.finetune_optimizer is not None:
                refuse_swapping(self._beside.callbacks)
                if run.result is None:
                    beside.warn_of_metrics(self._beside)

    def _is_in_stage_two(self) -> bool:
        return isinstance(unscaled(self.model.optimizer), SparseOptimizer)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Check the plan before the first step; write the backup."""
        run = self._run
        if self._is_first_epoch:
            self._begin_first_epoch(epoch)
            self._news = [*self._where_it_begins(epoch), *self._news]
        run.epoch, run.batches_before_epoch = epoch, run.batches
        if self._backup is not None and not self._is_first_epoch:
            # Not at the end of the last one, which other callbacks have yet to end.
            self._backup.save(self.model)
        self._is_first_epoch = False
        self._compact.start()
        if self._is_in_stage_two():
            self._restart_others()
            self._others_are_to_restart = False
            self._stage_two.begin(self.model, self.params)
        self._stage_two.epoch_begin(epoch, logs)
        self._print_news()

    def _where_it_begins(self, epoch: int) -> list[str]:
        run, model = self._run, self.model
        optimizer = unscaled(model.optimizer)
        if run.batches:
            stage, epochs = self._stage(), self.params["epochs"]
            return [resuming(stage, epoch, epochs, run.batches, optimizer)]
        if run.result is None and isinstance(optimizer, BayesTuneSGLD):
            return [beginning(model, optimizer)]
        return []

    def _print_news(self, start: str = "") -> None:
        if self._news and self.params.get("verbose"):
            print(start + "\n".join(self._news), flush=True)
        self._news.clear()

    def _stage(self) -> int:
        return 2 if self._is_in_stage_two() else 1

    def _begin_first_epoch(self, epoch: int) -> None:
        run, model, epochs = self._run, self.model, self.params["epochs"]
        run.begin_first_epoch(model, epoch)
        if run.result is None and run.is_stage_one_over(epoch, epochs):
            # Another callback saved the state before this one could end the stage.
            self._end_stage_one()
        if run.result is None:
            run.check_plan(model, epoch, epochs)
            rehearse(model, self.plan)
        if self._backup is not None:
            model._initial_epoch = None  # read by now, and not for another `fit`
        self._skips.look(model.optimizer, run.batches)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Let the step use compact gradients; tell the callbacks of stage 2."""
        self._compact.on_train_batch_begin(batch)
        self._stage_two.hear("on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Follow the trace; end stage 1 if it was planned by batches."""
        # With `steps_per_execution` not every batch ends with a call.
        self._run.batches = self._run.batches_before_epoch + batch + 1
        if self._skips.is_due(self._run.batches):
            self._stop_if_all_are_skipped()
        if self._run.result is not None:
            self._has_trained_stage_two = True
            self._stage_two.hear("on_train_batch_end", batch, logs)
            return
        self._run.record_trace(self.model)
        steps = self.plan.selection_steps
        if steps is not None and self._run.batches >= steps:
            self._end_stage_one()
            self._compact.start()
            keep_changes(self.model)
            self._print_news("\n")  # below the line of the progress bar

    def _stop_if_all_are_skipped(self) -> None:
        problem = self._skips.look(self.model.optimizer, self._run.batches)
        if problem is None:
            return
        if self._run.result is None:
            self._restore(self.model, stage_one.anchors_of(self.model))
        raise ValueError(problem)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """End stage 1 if it was planned by epochs; log where the run is."""
        logs = {} if logs is None else logs
        if self._run.result is not None:
            self._log(logs)
            self._keep_samples_only()  # after an epoch with the switch inside
            self._restart_others()  # what they saw now was of stage 1
            self._stage_two.hear("on_epoch_end", epoch, logs)
            return
        optimizer = stage_one.stage_one_optimizer(self.model)
        optimizer.warn_if_noise_dominates()
        self._learning.add_epoch(logs)
        self._run.look(optimizer)
        self._log(logs)
        is_over = self._run.is_stage_one_over(epoch + 1, self.params["epochs"])
        if self.plan.selection_epochs and is_over:
            self._end_stage_one()
            self._keep_samples_only()

    def _keep_samples_only(self) -> None:
        """Log of stage 1 no more than what the mask comes from."""
        self._run.numbers = {"samples": self.metadata["samples"]}

    def _restart_others(self) -> None:
        if self._others_are_to_restart and self._beside is not None:
            beside.restart(self._beside)

    def _log(self, logs: dict[str, Any]) -> None:
        logs.update(self._run.numbers)
        if self.plan.finetune_optimizer is not None:
            logs["stage"] = self._stage()
        skipped = self._run.skipped_steps(self.model)
        if skipped:
            logs["skipped_steps"] = skipped

    def on_test_begin(self, logs: Any = None) -> None:
        """Tell the callbacks of stage 2."""
        self._stage_two.hear("on_test_begin", logs)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Tell the callbacks of stage 2."""
        self._stage_two.hear("on_test_batch_begin", batch, logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Tell the callbacks of stage 2."""
        self._stage_two.hear("on_test_batch_end", batch, logs)

    def on_test_end(self, logs: Any = None) -> None:
        """Tell the callbacks of stage 2."""
        self._stage_two.hear("on_test_end", logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Build the mask if stage 1 lasted until here."""
        self._compact.on_train_end()
        if self._is_first_epoch:
            self._run.take_carried(self.model)  # no epoch was left
        if self._run.result is None:
            self._is_cut_short = not self._run.is_stage_one_over(
                self._run.epoch + 1, self.params["epochs"]
            )
            self._end_stage_one(is_last=True)
        self._stage_two.end(logs)
        if self._beside is None:
            self._end_fit()

    def _end_fit(self) -> None:
        """See what is left when all other callbacks have ended, too."""
        if self._has_ended_stage_one and not self._has_trained_stage_two:
            # `fit` may have set averages, and another callback weights of stage 1.
            self._restore(self.model, self.anchors)
            if self._is_cut_short or self.plan.finetune_optimizer is not None:
                stopped, samples = self.model.stop_training, self.metadata["samples"]
                self.plan.warn_of_early_end(
                    self._run.epoch + 1, stopped, STARTS[self.stage_2_start], samples
                )
        self._skips.warn(self._run.skipped_steps(self.model))
        self._print_news()
        self._run.end(self.model)
        if self._backup is not None:
            self._backup.delete()

    def _restore(self, model: keras.Model, anchors: dict[str, np.ndarray]) -> None:
        """Give the weights what stage 2 starts from."""
        if self.stage_2_start != "last state":
            stage_one.restore(model, anchors)
        if self._last_values:
            give_to_selected(model, self.mask, self._last_values)

    def _end_stage_one(self, is_last: bool = False) -> None:
        model = self.model  # read once it syncs the state on JAX
        optimizer = stage_one.stage_one_optimizer(model)
        try:
            result = stage_one.result_of_stage_one(model, self.plan)
        except ValueError:
            self._restore(model, stage_one.anchors_of(model))
            raise
        self._learning.warn(model, optimizer)
        self._run.look(optimizer)
        health = health_of(
            optimizer, kept(result.scores), self._learning.losses, self._run.numbers
        )
        metadata = {**result.metadata, "health": dataclasses.asdict(health)}
        result = dataclasses.replace(result, metadata=metadata)
        self._news.append(str(health))
        self._run.result, self._has_ended_stage_one = result, True
        if self.plot_dir is not None:
            save_plots(
                self.plot_dir,
                self.scores,
                result.mask,
                self._run.trace,
                health.without_gradient,
            )
        if self.plan.finetune_optimizer is not None:
            # As at the end of a `fit`: moving averages, which the head keeps.
            optimizer.finalize_variable_values(model.trainable_variables)
        if self.stage_2_start == "last values":
            self._last_values = selected_values(model, result.mask)
        self._restore(model, self.anchors)
        self._run.switch(model, result.mask)
        following = self.plan.finetune_optimizer
        if following is not None:
            self._news.append(
                switching(
                    model,
                    result.mask,
                    optimizer.num_samples,
                    self.stage_2_start,
                    type(following).__name__,
                )
            )
        if is_last:
            return
        if self._is_in_stage_two():
            self._others_are_to_restart = True
            self._stage_two.begin(model, self.params)
        else:
            model.stop_training = True  # nothing is left to do
