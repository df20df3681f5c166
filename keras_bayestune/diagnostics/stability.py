"""How sure a selection is: between chains or seeds, and within one chain."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from keras import ops

from keras_bayestune.arguments import check_number
from keras_bayestune.masks import SparseMask


def overlap_matrix(masks: Sequence[SparseMask]) -> np.ndarray:
    """Overlap of each pair of masks, for instance of several chains or seeds.

    ```
    O_jk = |A_j and A_k| / min(|A_j|, |A_k|)      A: selected scalars that competed
    ```

    Chance gives the fraction p, agreement 1; see `SparseMask.overlap`.

    Args:
        masks: K masks of the same model, at least one.

    Returns:
        float64, shape (K, K), ones on the diagonal.

    Raises:
        ValueError: No mask, masks of different models, or one that chooses nothing.

    Examples:
        >>> from keras_bayestune import SparseMask
        >>> from keras_bayestune.diagnostics import overlap_matrix
        >>> selected, shapes = ([0, 1], [1, 2]), {"k": (4,)}
        >>> masks = [SparseMask({"k": indices}, shapes) for indices in selected]
        >>> overlap_matrix(masks).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    _check_any(masks)
    return np.array([[one.overlap(other) for other in masks] for one in masks])


def selection_frequency(masks: Sequence[SparseMask]) -> dict[str, np.ndarray]:
    """Return the fraction of the masks that select each scalar.

    With masks of independent chains an estimate of the probability that the scalar is
    in the top p, free of any assumption; it moves in steps of 1/K.

    Args:
        masks: K masks with the same variable paths, at least one.

    Returns:
        `{variable path: float32 array of the variable's shape}`, from 0 to 1.

    Raises:
        ValueError: No mask, or masks with other paths or shapes.

    Examples:
        >>> from keras_bayestune import SparseMask
        >>> from keras_bayestune.diagnostics import selection_frequency
        >>> selected, shapes = ([0, 1], [1, 2]), {"k": (3,)}
        >>> masks = [SparseMask({"k": indices}, shapes) for indices in selected]
        >>> selection_frequency(masks)["k"].tolist()
        [0.5, 1.0, 0.5]
    """
    _check_any(masks)
    shapes = masks[0].shapes
    counts = {path: np.zeros(int(np.prod(s)), np.int32) for path, s in shapes.items()}
    for number, mask in enumerate(masks):
        if dict(mask.shapes) != dict(shapes):
            raise ValueError(
                f"Mask {number} has other variables than mask 0: "
                f"{len(mask.shapes)} and {len(shapes)}, or other shapes. Pass masks of "
                "one model."
            )
        for path, indices in mask.indices.items():
            counts[path][indices] += 1
    return {
        path: (counts[path] / len(masks)).astype(np.float32).reshape(shape)
        for path, shape in shapes.items()
    }


def selection_probability(
    means: Mapping[str, npt.ArrayLike],
    second_moments: Mapping[str, npt.ArrayLike],
    samples: float,
    fraction: float,
) -> dict[str, np.ndarray]:
    """Probability that each scalar belongs to the top p, from one chain's moments.

    The running mean of a score has a Monte-Carlo error, taken as normal and
    independent between scalars; the cut, between millions of scalars, as exact:

    ```
    P_i = Phi((mean_i - cut) / e_i),      e_i^2 = (E[score_i^2] - mean_i^2) / S
    ```

    `cut` is the smallest mean that the top p holds, where P is 1/2. It says how sure
    the *ranking* is after S draws, not whether it is the right one: a chain that has
    not mixed is sure of itself, and only several chains show it
    (`selection_frequency`).

    Args:
        means: `BayesTuneSGLD.posterior_scales()`.
        second_moments: `BayesTuneSGLD.posterior_second_moments()`, with
            `second_moment=True`; same paths and shapes.
        samples: S > 0, the effective number of draws: `num_samples` if they are
            independent, else see `effective_sample_size`.
        fraction: p in (0, 1].

    Returns:
        `{variable path: float32 array}`, from 0 to 1. A scalar whose score never
        varied is 1 or 0.

    Raises:
        ValueError: Paths or shapes that differ, `samples` or `fraction` out of range.

    Examples:
        >>> from keras_bayestune.diagnostics import selection_probability
        >>> means = {"k": np.array([1.0, 2.0, 4.0, 3.0])}
        >>> moments = {"k": means["k"] ** 2 + 1.0}  # each has variance 1
        >>> found = selection_probability(means, moments, samples=4, fraction=0.5)
        >>> [round(probability, 3) for probability in found["k"].tolist()]
        [0.0, 0.023, 0.977, 0.5]
    """
    samples = check_number("samples", samples, "(0, inf)")
    scores = {path: np.asarray(mean) for path, mean in means.items()}
    squares = {path: np.asarray(moment) for path, moment in second_moments.items()}
    shapes = {path: score.shape for path, score in scores.items()}
    if shapes != {path: square.shape for path, square in squares.items()}:
        raise ValueError(
            "`means` and `second_moments` must have the same paths and shapes. "
            f"Received {len(scores)} and {len(squares)} arrays; only in one, or of "
            f"another shape: {_unequal(scores, squares)[:5]}."
        )
    mask = SparseMask.from_scores(scores, fraction)
    cut = min(
        score.ravel()[mask.indices[path]].min()
        for path, score in scores.items()
        if len(mask.indices[path])
    )
    found = {}
    for path, score in scores.items():
        distance = score.astype(np.float64) - cut
        variance = squares[path] - score.astype(np.float64) ** 2
        error = np.sqrt(np.maximum(variance, 0) / samples)
        certain = np.where(distance >= 0, np.inf, -np.inf)
        moves = error > 0
        z = np.where(moves, distance / np.where(moves, error, 1.0), certain)
        z = np.clip(z, -10, 10).astype(np.float32)
        found[path] = 0.5 * (1 + ops.convert_to_numpy(ops.erf(z / np.float32(2**0.5))))
    return found


def _check_any(masks: Sequence[SparseMask]) -> None:
    if not masks:
        raise ValueError("Received no mask. Pass one for each chain or seed.")


def _unequal(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> list[str]:
    return sorted(
        path
        for path in {*one, *other}
        if path not in one or path not in other or one[path].shape != other[path].shape
    )
