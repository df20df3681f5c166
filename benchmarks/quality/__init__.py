"""Selection rules beside each other: equal budget, second stage, data and seeds.

    python -m benchmarks.quality run --suite digits --seeds 10
    python -m benchmarks.quality run --suite text --jsonl FOLDER --preset FOLDER
    python -m benchmarks.quality table --suite digits
    python -m benchmarks.quality ranks --labels digits-400-300 text-60-80
    python -m benchmarks.quality figure --suite digits --figure errors.png
    python -m benchmarks.quality stability --suite digits --seeds 2

A cell is one task, method, share p of the scalars, head rule and seed under one
budget. A finished cell is one file, so a stopped run loses one cell at most and goes on
from there; `collect` gathers the files of a suite and budget in one file under
`benchmarks/results/`, which `run` and `table` read as well.

Every method gets the same number of gradient steps (of `batch_size` examples), its
selection included, and starts from the same weights. Its learning rate in stage 2 is
the one of a grid whose validation metric is best, in that cell; the test set is looked
at once, with that rate.
"""
