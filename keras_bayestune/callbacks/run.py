"""Where a run of two stages is, and how an interrupted one goes on."""

import keras
import numpy as np

from keras_bayestune.arguments import check_integer
from keras_bayestune.callbacks import stage_one
from keras_bayestune.callbacks.backup import Backup
from keras_bayestune.callbacks.plan import Plan
from keras_bayestune.callbacks.run_state import Carried, Progress, Result, describe
from keras_bayestune.callbacks.scale_trace import ScaleTrace
from keras_bayestune.callbacks.switching import switch_optimizer
from keras_bayestune.diagnostics import MINIMUM_DRAWS, effective_sample_size
from keras_bayestune.diagnostics.chain_statistics import arviz
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import BayesTuneSGLD, SparseOptimizer, unscaled
from keras_bayestune.updates.replicas import strategy_scope


class Run:
    """Counters, and what stage 1 has found; one model's.

    Args:
        plan: When stage 1 ends, and what follows.
        trace_scalars: How many scales are followed.
    """

    def __init__(self, plan: Plan, trace_scalars: int):
        """Begin with nothing done."""
        self.plan = plan
        self.trace_scalars = check_integer("trace_scalars", trace_scalars, 0)
        if self.trace_scalars:
            arviz()  # raises now, not after ten samples
        self._served: keras.Model | None = None
        self.begin_stage_one()
        self.begin_fit()

    def begin_stage_one(self) -> None:
        """Forget what another stage 1 has found."""
        self.result: Result | None = None
        self.numbers: dict[str, float] = {}  # logged last
        self.trace: ScaleTrace | None = None

    def begin_fit(self) -> None:
        """Forget where the last `fit` was, which may have ended with an exception."""
        self._carried: Carried | None = None
        self.first_epoch: int | None = None  # of stage 1
        self.epoch = 0  # begun last
        self.batches_before_epoch = self.batches = 0
        self.steps: int | None = None  # of an epoch, if known
        self.is_over = False

    def serve(self, model: keras.Model) -> None:
        """Belong to a model.

        Raises:
            ValueError: there is a mask of another one.
        """
        if self._served is not None and self._served is not model:
            if self.result is not None:
                raise ValueError(
                    "This SparseMaskCallback holds the mask of another model, "
                    f"{self._served.name!r}. Make a new callback, and a new "
                    "`finetune_optimizer`, for every model."
                )
            self.begin_stage_one()
        self._served = model

    def begin_first_epoch(self, model: keras.Model, epoch: int) -> None:
        """Take what another callback has loaded since; warn if `epoch` is another."""
        self.take_carried(model)
        if self._carried is not None:
            self._carried.check_epoch(epoch)
        if self.first_epoch is None:
            self.first_epoch = epoch

    def check_plan(self, model: keras.Model, epoch: int, epochs: int) -> None:
        """Raise if a `fit` up to `epochs` takes no sample, or leaves no stage 2."""
        self.plan.check_fit(
            stage_one.stage_one_optimizer(model),
            epochs,
            self.steps,
            epoch=epoch,
            first_epoch=self.first_epoch or 0,
            batches=self.batches,
        )

    @property
    def finished(self) -> Result:
        """What stage 1 has found; a ValueError before its end."""
        if self.result is None:
            raise ValueError(
                "Stage 1 has not ended yet, so there is no mask. Run model.fit(..., "
                "callbacks=[callback]) first."
            )
        return self.result

    @property
    def samples(self) -> np.ndarray | None:
        """Sampled scales of the scalars followed, if any are."""
        return None if self.trace is None else self.trace.samples()

    def record_trace(self, model: keras.Model) -> None:
        """Add what was sampled since the last batch."""
        if self.trace_scalars:
            optimizer = stage_one.stage_one_optimizer(model)
            if self.trace is None:
                self.trace = ScaleTrace(optimizer.running_means(), self.trace_scalars)
            self.trace.record(optimizer)

    def look(self, optimizer: BayesTuneSGLD) -> None:
        """Work out the numbers of stage 1 that an epoch logs."""
        self.numbers = stage_one_numbers(optimizer, self.plan.threshold, self.trace)

    def is_stage_one_over(self, epochs: int, epochs_of_fit: int) -> bool:
        """Return whether it has lasted as planned, when `epochs` have ended."""
        if self.plan.selection_steps is not None:
            return self.batches >= self.plan.selection_steps
        if self.plan.selection_epochs is not None:
            return epochs - (self.first_epoch or 0) >= self.plan.selection_epochs
        return epochs >= epochs_of_fit

    def skipped_steps(self, model: keras.Model) -> int:
        """Return the updates skipped for a non-finite gradient, in both stages."""
        if self.result is None:
            return stage_one.stage_one_optimizer(model).skipped_steps
        optimizer = unscaled(model.optimizer)
        if isinstance(optimizer, SparseOptimizer):
            return self.result.skipped_steps + optimizer.skipped_steps
        return self.result.skipped_steps

    def switch(self, model: keras.Model, mask: SparseMask) -> None:
        """Begin stage 2, if there is one."""
        if self.plan.finetune_optimizer is not None:
            with strategy_scope(model):
                stage_two = SparseOptimizer(self.plan.finetune_optimizer, mask)
                switch_optimizer(model, stage_two)
            self.attach(model)

    def attach(self, model: keras.Model) -> None:
        """Have the optimizer carry the state of the run through Keras's files."""
        optimizer = unscaled(model.optimizer)
        if isinstance(optimizer, BayesTuneSGLD | SparseOptimizer):
            optimizer.run.attach(
                lambda: describe(model, self._progress()),
                can_switch=self.plan.finetune_optimizer is not None,
            )

    def take_carried(self, model: keras.Model) -> None:
        """Go on from what was loaded with the optimizer, if anything was."""
        optimizer = unscaled(model.optimizer)
        if not isinstance(optimizer, BayesTuneSGLD | SparseOptimizer):
            return
        taken = optimizer.run.take()
        if taken is None:
            return
        document, arrays, stage_two = taken
        self._carried = Carried(document, arrays)
        progress = self._carried.progress
        if stage_two is not None and progress.result is not None:
            self.switch(model, progress.result.mask)
            unscaled(model.optimizer).load_own_variables(stage_two)
        self._carried.restore(model)
        self._go_on(model, progress)

    def end(self, model: keras.Model) -> None:
        """`fit` has ended by itself: what is saved from now on is small."""
        self.is_over = True
        optimizer = unscaled(model.optimizer)
        if isinstance(optimizer, BayesTuneSGLD | SparseOptimizer):
            optimizer.run.detach()

    def restore(self, backup: Backup, model: keras.Model) -> None:
        """Go on from the backup, if there is one."""
        if not backup.exists:
            return
        if not model.built:
            raise ValueError(
                "To go on from `backup_dir` the model must be built before `fit`: "
                "give it an Input, or call it on a batch first."
            )
        with strategy_scope(model):
            model.optimizer.build(model.trainable_variables)
        backup.restore(model)
        self.take_carried(model)
        if self._carried is not None:
            # As keras.callbacks.BackupAndRestore does (Keras 3.15).
            model._initial_epoch = self._carried.progress.epoch

    def _go_on(self, model: keras.Model, progress: Progress) -> None:
        """Know what the interrupted run knew."""
        self.result, self.numbers = progress.result, progress.numbers
        self.first_epoch, self.batches = progress.first_epoch, progress.batches
        self.trace = None
        if progress.trace is not None:
            means = []
            if self.result is None:
                means = stage_one.stage_one_optimizer(model).running_means()
            self.trace = ScaleTrace(means, self.trace_scalars)
            self.trace.restore(*progress.trace)

    def _progress(self) -> Progress:
        return Progress(
            epoch=self.epoch,
            batches_before=self.batches_before_epoch,
            batches=self.batches,
            steps=self.steps,
            is_over=self.is_over,
            first_epoch=self.first_epoch,
            numbers=self.numbers,
            result=self.result,
            trace=None if self.trace is None else self.trace.state(),
        )


def stage_one_numbers(
    optimizer: BayesTuneSGLD, threshold: float | None, trace: ScaleTrace | None
) -> dict[str, float]:
    """Return what is known by now; 0 where no sample says anything yet.

    Always the same keys for the same arguments, so that `History` stays aligned and
    `CSVLogger`, which takes its columns from the first epoch, has them all.
    """
    samples = optimizer.num_samples
    numbers: dict[str, float] = {"samples": samples}
    if threshold is not None:
        fraction = 0.0
        if samples:
            scores = optimizer.posterior_scales().values()
            above = sum(int((score > threshold).sum()) for score in scores)
            fraction = above / sum(score.size for score in scores)
        numbers["fraction_above_threshold"] = fraction
    if trace is not None:
        draws = trace.samples()
        size = 0.0
        if len(draws) >= MINIMUM_DRAWS:
            size = float(np.median(effective_sample_size(draws)))
        numbers["effective_sample_size"] = size
    return numbers
