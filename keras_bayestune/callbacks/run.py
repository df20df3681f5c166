"""Where a run of two stages is, and how an interrupted one goes on."""

import keras
import numpy as np

from keras_bayestune.callbacks import stage_one
from keras_bayestune.callbacks.backup import Backup
from keras_bayestune.callbacks.carried_state import Carried, Position, carried_state
from keras_bayestune.callbacks.plan import Plan
from keras_bayestune.callbacks.progress_document import Progress
from keras_bayestune.callbacks.result import Result
from keras_bayestune.callbacks.scale_trace import ScaleTrace
from keras_bayestune.callbacks.switching import switch_optimizer
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
        self.trace_scalars = trace_scalars
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
                lambda: carried_state(
                    model,
                    self._progress(model, self.epoch),
                    Position(
                        self.epoch, self.batches_before_epoch, self.steps, self.is_over
                    ),
                ),
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

    def check_epoch(self, epoch: int) -> None:
        """Warn if the first epoch is not the one that was interrupted."""
        if self._carried is not None:
            self._carried.check_epoch(epoch)

    def save(self, backup: Backup, model: keras.Model, epoch: int) -> None:
        """Write the backup, from which `epoch` comes next."""
        backup.save(model, self._progress(model, epoch))

    def restore(self, backup: Backup, model: keras.Model) -> None:
        """Go on from the backup, if there is one."""
        saved = backup.open()
        if saved is None:
            return
        progress = saved.progress
        if not model.built:
            raise ValueError(
                "To go on from `backup_dir` the model must be built before `fit`: "
                "give it an Input, or call it on a batch first."
            )
        if progress.result is not None and self.result is None:
            self.switch(model, progress.result.mask)
        elif progress.result is None and self.result is not None:
            raise ValueError(
                "The backup is of stage 1, but this callback and model are in "
                "stage 2. Make the model and the callback anew, as a new process "
                "would."
            )
        with strategy_scope(model):
            model.optimizer.build(model.trainable_variables)
        saved.restore(model)
        if progress.result is None:
            optimizer = stage_one.stage_one_optimizer(model)
            optimizer.non_trainable_anchors = progress.non_trainable
        self._go_on(model, progress)
        self._carried = None  # older, if anything was loaded
        # As keras.callbacks.BackupAndRestore does (Keras 3.15).
        model._initial_epoch = progress.epoch

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

    def _progress(self, model: keras.Model, epoch: int) -> Progress:
        anchors: list[np.ndarray] = []
        if self.result is None:
            anchors = stage_one.stage_one_optimizer(model).non_trainable_anchors
        return Progress(
            epoch,
            self.first_epoch,
            self.batches,
            self.numbers,
            self.result,
            anchors,
            None if self.trace is None else self.trace.state(),
        )
