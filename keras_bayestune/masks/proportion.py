"""How much is selected, in words: of what competes, and what is taken whole."""

import math
from collections.abc import Iterable, Mapping

from keras_bayestune.paths import layer_of

_MOST_NAMES = 3


def proportion(
    counts: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    whole: Iterable[str],
) -> str:
    """Say "2 % of 12,672 scalars (253) + all 330 of logits, norm".

    The fraction of everything would say little where a fresh head is much of it.

    Args:
        counts: Selected scalars of every variable, by path.
        shapes: Shapes of the same variables.
        whole: Paths of those that are taken whole, as heads and statistics are.

    Examples:
        >>> from keras_bayestune.masks.proportion import proportion
        >>> shapes = {"body/kernel": (10, 20), "head/bias": (3,)}
        >>> proportion({"body/kernel": 4, "head/bias": 3}, shapes, ["head/bias"])
        '2 % of 200 scalars (4) + all 3 of head'
    """
    whole = [path for path in whole if math.prod(shapes[path])]
    others = shapes.keys() - set(whole)
    size = sum(math.prod(shapes[path]) for path in others)
    parts = []
    if size or not whole:
        count = sum(counts[path] for path in others)
        fraction = count / size if size else 0.0
        parts.append(f"{100 * fraction:.3g} % of {size:,} scalars ({count:,})")
    if whole:
        layers = [layer_of(path).rpartition("/")[2] for path in whole]
        names = list(dict.fromkeys(layers))
        if len(names) > _MOST_NAMES:
            names[_MOST_NAMES:] = [f"{len(names) - _MOST_NAMES} more"]
        total = sum(math.prod(shapes[path]) for path in whole)
        parts.append(f"all {total:,} of {', '.join(names)}")
    return " + ".join(parts)
