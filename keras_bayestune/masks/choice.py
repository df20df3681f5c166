"""From scores to selected indices: budgets, thresholds, variables taken whole."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_bayestune.arguments import check_number
from keras_bayestune.budgets.budget import (
    Budget,
    Indices,
    check_not_equal,
)
from keras_bayestune.budgets.global_budget import Global
from keras_bayestune.knee import find_knees
from keras_bayestune.selection import Ranking, Subset

Shapes = dict[str, tuple[int, ...]]


def choose(
    scores: Mapping[str, Any],
    fraction: float | str | None,
    threshold: float | None,
    budget: Budget | None,
    always: Iterable[str] | Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """The constructor's arguments of the mask that `SparseMask.from_scores` makes."""
    if not isinstance(scores, Mapping):
        raise TypeError(
            "`scores` must be a mapping {variable path: array}. Received: "
            f"{type(scores).__name__}."
        )
    shapes: Shapes = {p: tuple(map(int, np.shape(a))) for p, a in scores.items()}
    whole = _whole(always, shapes)
    competing = [p for p in shapes if p not in whole and math.prod(shapes[p]) > 0]
    is_asked = not (fraction is None and threshold is None and budget is None)
    budget = Global() if budget is None else budget
    if is_asked or competing or not whole:
        check_rule(fraction, threshold, budget)
        if not competing:
            raise ValueError(
                "No scalar competes for the budget: "
                f"{len(shapes)} variables have scores, "
                f"{len(shapes.keys() & whole.keys())} of them are in `always`. Without "
                "`fraction` and `threshold` the mask holds `always` only."
            )
    found: Indices = {}
    means: dict[str, float] = {}
    candidates: tuple[float, ...] = ()
    if competing and is_asked:
        # Ranked together first, so that every score is checked before any is selected.
        competitors = Subset(scores, competing)
        ranking = Ranking(competitors)
        means = ranking.means
        if isinstance(fraction, str):  # "auto"
            check_not_equal(ranking, fraction, "")
            fraction, candidates = find_knees(ranking)
        if threshold is not None:
            found = _above(ranking, float(threshold))
        else:
            found = budget.select(competitors, ranking, fraction)
    return {
        "indices": {
            **{path: np.empty(0, np.int32) for path in shapes},
            **found,
            **{path: np.arange(math.prod(shape)) for path, shape in whole.items()},
        },
        "shapes": shapes | whole,
        "always": whole,
        "mean_scores": means,
        "candidates": candidates,
    }


def check_rule(
    fraction: float | str | None, threshold: float | None, budget: Budget
) -> None:
    """Raise unless the three are valid together."""
    if not isinstance(budget, Budget):
        raise TypeError(
            "`budget` must be one of keras_bayestune.budgets, such as PerTensor(), or "
            f"None. Received: {budget!r}."
        )
    if fraction is not None and threshold is not None:
        raise ValueError(
            "Give either `fraction` or `threshold`. Received both: "
            f"fraction={fraction!r}, threshold={threshold!r}."
        )
    if fraction is not None and fraction != "auto":
        hint = "0.005 is 0.5 %, and 'auto' the knee of the sorted scores."
        check_number("fraction", fraction, "(0, 1]", hint=hint)
    if threshold is not None:
        check_number("threshold", threshold, "(-inf, inf)")
    budget.check(fraction, threshold)


def _whole(always: Any, shapes: Shapes) -> Shapes:
    """`{path: shape}` of the variables that are taken whole."""
    if isinstance(always, str):
        raise TypeError(
            f"`always` must be a collection of paths. Received one string: {always!r}; "
            f"write [{always!r}]."
        )
    if isinstance(always, Mapping):
        whole = {path: tuple(map(int, shape)) for path, shape in always.items()}
        for path, shape in whole.items():
            if shapes.get(path, shape) != shape:
                raise ValueError(
                    f"`always` gives {path!r} the shape {shape}, its scores have "
                    f"{shapes[path]}."
                )
        return whole
    paths = tuple(dict.fromkeys(always))
    unknown = [path for path in paths if path not in shapes]
    if unknown:
        raise ValueError(
            f"`always` names variables without scores: {unknown[:5]}. Correct the "
            "path, or give {path: shape} for a variable that has no scores."
        )
    return {path: shapes[path] for path in paths}


def _above(ranking: Ranking, threshold: float) -> Indices:
    indices = ranking.above(threshold)
    if not any(map(len, indices.values())):
        raise ValueError(
            f"No score is above `threshold` {threshold}: the largest of {ranking.size} "
            f"is {ranking.values_at([1])[0]:.6g}."
        )
    return indices
