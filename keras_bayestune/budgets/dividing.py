"""One number of scalars divided over pools, each in proportion to its size."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_bayestune.budgets.budget import Indices
from keras_bayestune.selection import Ranking, Subset


def divide(
    scores: Mapping[str, Any],
    pools: Sequence[Sequence[str]],
    sizes: Mapping[str, int],
    count: int,
) -> Indices:
    """Return the indices of the largest scores within each pool, `count` in all.

    The exact share of a pool of `n_j` among n scalars is `count n_j / n`. It gets
    that, rounded down or up, in whole numbers throughout: up where the score that is
    next in line is largest, so many times that the total is `count`. Equal scores go
    by the pool's first path.

    Args:
        scores: `{path: array}`.
        pools: Paths of each pool; each path once.
        sizes: Scalars by path.
        count: From 1 to the number of scalars.
    """
    pools = sorted(sorted(pool) for pool in pools)
    total = sum(sizes.values())
    shares = [divmod(count * sum(sizes[p] for p in pool), total) for pool in pools]
    counts = [whole for whole, _ in shares]
    left = count - sum(counts)
    if left:
        following = {
            i: Ranking(Subset(scores, pools[i])).values_at([counts[i] + 1])[0]
            for i, (_, rest) in enumerate(shares)
            if rest
        }
        for i in sorted(following, key=lambda i: -following[i])[:left]:
            counts[i] += 1
    found: Indices = {}
    for pool, number in zip(pools, counts, strict=True):
        if number:  # a ranking at a time: each holds half a megabyte of counts
            found |= Ranking(Subset(scores, pool)).top(number)
    return found
