r"""Uncertainty: ways to a distribution over deltas beside each other, and under shift.

    python -m benchmarks.uncertainty run --suite digits --seeds 3
    python -m benchmarks.uncertainty run --suite short-text --fraction 0.005 \
        --preset FOLDER --jsonl FOLDER --seeds 1
    python -m benchmarks.uncertainty table --suite digits
    python -m benchmarks.uncertainty sampling --tasks turned --seeds 1
    python -m benchmarks.uncertainty chains --seeds 3

For a task under a seed: BayesTune's mask, five deltas tuned under it, each from a head
of its own, and every method on what they hold. A block that is in the file of results
is not run again.
"""
