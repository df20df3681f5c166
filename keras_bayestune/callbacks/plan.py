"""When stage 1 ends: the arguments of the callback, checked early."""

import math
import warnings
from dataclasses import dataclass

import keras

from keras_bayestune.arguments import check_integer, check_number
from keras_bayestune.budgets import Budget, Global
from keras_bayestune.masks.choice import check_rule
from keras_bayestune.optimizers import BayesTuneSGLD
from keras_bayestune.optimizers.arguments import check_inner


@dataclass(frozen=True, repr=False)
class Plan:
    """What to select, and after how many epochs or batches of stage 1."""

    fraction: float | str | None
    threshold: float | None
    selection_epochs: int | None
    selection_steps: int | None
    finetune_optimizer: keras.optimizers.Optimizer | None
    budget: Budget | None = None  # `None` for `Global()`

    def __post_init__(self) -> None:
        """Check what can be checked before `fit`."""
        self._check_cut()
        self._check_end()
        optimizer = self.finetune_optimizer
        if optimizer is None:
            return
        check_inner("finetune_optimizer", optimizer)
        if self.selection_epochs is None and self.selection_steps is None:
            raise ValueError(
                "With a `finetune_optimizer`, say when stage 1 ends: give "
                "`selection_epochs` or `selection_steps`."
            )

    def __repr__(self) -> str:
        """Return "p = 0.005, stage 1 of 3 epochs, then Adam"."""
        cut = f"p = {self.fraction}"
        if self.threshold is not None:
            cut = f"scale > {self.threshold}"
        length = "all epochs"
        if self.selection_epochs is not None:
            length = f"{self.selection_epochs} epochs"
        elif self.selection_steps is not None:
            length = f"{self.selection_steps} batches"
        following = ""
        if self.finetune_optimizer is not None:
            following = f", then {type(self.finetune_optimizer).__name__}"
        return f"{cut}, stage 1 of {length}{following}"

    def _check_cut(self) -> None:
        fraction, threshold = self.fraction, self.threshold
        if fraction is not None and threshold is not None:
            raise ValueError(
                "Give `fraction` or `threshold`, not both. Received: "
                f"fraction={fraction}, threshold={threshold}."
            )
        if threshold is not None:
            hint = "It is in units of the weight."
            check_number("threshold", threshold, "[0, inf)", hint=hint)
        check_rule(fraction, threshold, self.budget or Global())

    def _check_end(self) -> None:
        ends = {
            "selection_epochs": self.selection_epochs,
            "selection_steps": self.selection_steps,
        }
        if None not in ends.values():
            raise ValueError(
                "Give `selection_epochs` or `selection_steps`, not both. Received: "
                f"selection_epochs={self.selection_epochs}, "
                f"selection_steps={self.selection_steps}."
            )
        for name, value in ends.items():
            if value is not None:
                check_integer(name, value, 1)

    def check_fit(
        self,
        optimizer: BayesTuneSGLD,
        epochs: int,
        steps: int | None,
        *,
        epoch: int = 0,
        first_epoch: int = 0,
        batches: int = 0,
    ) -> None:
        """Raise if this `fit` takes no sample, or leaves nothing for stage 2.

        Args:
            optimizer: The optimizer of stage 1.
            epochs: The `epochs` of `fit`.
            steps: Batches per epoch, `None` if not known.
            epoch: The first epoch of this `fit`, from 0.
            first_epoch: The first epoch of stage 1, earlier if the run is resumed.
            batches: Batches of stage 1 that are done.
        """
        planned: float
        left = math.inf if steps is None else (epochs - epoch) * steps
        if self.selection_steps is not None:
            planned = self.selection_steps - batches
        else:
            last = epochs
            if self.selection_epochs is not None:
                last = first_epoch + self.selection_epochs
            planned = math.inf if steps is None else (last - epoch) * steps
            self._check_epochs(last, epochs, first_epoch)
        if self.finetune_optimizer is not None and planned >= left < math.inf:
            raise ValueError(
                f"selection_steps={self.selection_steps} of {left + batches} batches "
                "leaves none for stage 2. Raise `epochs` of fit, or lower "
                "selection_steps."
            )
        planned = min(planned, left)
        if planned == math.inf:
            return  # a data set of unknown length
        updates = int(planned) // (optimizer.gradient_accumulation_steps or 1)
        needed = optimizer.burn_in_steps + optimizer.thinning - optimizer.num_updates
        if updates < needed:
            raise ValueError(
                f"Stage 1 is planned for {updates} updates, but the first posterior "
                f"sample comes after {needed}: burn_in_steps="
                f"{optimizer.burn_in_steps} plus thinning={optimizer.thinning}. Plan "
                "more epochs, or lower warmup_steps and burn_in_steps (about a "
                "quarter and a half of the planned updates)."
            )

    def _check_epochs(self, last: int, epochs: int, first_epoch: int) -> None:
        if self.finetune_optimizer is not None and last >= epochs:
            begin = f" from initial_epoch={first_epoch} on" if first_epoch else ""
            raise ValueError(
                f"selection_epochs={self.selection_epochs} of epochs={epochs}{begin} "
                "leaves no epoch for stage 2. Raise `epochs` of fit, or lower "
                "selection_epochs."
            )

    def warn_of_early_end(
        self, epoch: int, was_stopped: bool, weights: str, samples: int
    ) -> None:
        """Warn that `fit` was over before stage 1, or before stage 2 began.

        Args:
            epoch: The epoch in which it ended, from 1.
            was_stopped: Whether a callback stopped it.
            weights: What they are now.
            samples: Posterior samples that the mask comes from.
        """
        cause = "a callback stopped it" if was_stopped else "the data or epochs ran out"
        cure = "Let stage 1 run to its end"
        if self.finetune_optimizer is not None:
            cure = (
                "Pass callbacks that stop on a metric as SparseMaskCallback("
                "stage_2_callbacks=[...]) and run again; or call `fit` once more with "
                "this callback, to train stage 2 with this mask"
            )
        planned = {
            "selection_epochs": self.selection_epochs,
            "selection_steps": self.selection_steps,
        }
        told = [f"{name}={value}" for name, value in planned.items() if value]
        warnings.warn(
            f"`fit` ended in epoch {epoch}, because {cause}, and "
            + ("stage 2 never began" if self.finetune_optimizer else "stage 1 was cut")
            + f" (planned: {told[0] if told else 'all epochs'}). The mask comes from "
            f"{samples} samples, the weights are {weights}. {cure}.",
            stacklevel=2,
        )
