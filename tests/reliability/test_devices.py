"""Eight virtual JAX devices train like one, and send around no more than they must."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_bayestune.samplers.partially_adaptive_metric import SMALLEST_FACTORED

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Keras 3.15 has distributions on JAX only"
)
# As far as float32 sums over devices in another order go.
WEIGHTS, SCORES = 1e-5, 1e-4  # of the largest value of the array
SHARDED = [f"sequential/{name}" for name in ("a/bias", *(f"{n}/kernel" for n in "abc"))]


@pytest.fixture(scope="module", params=[32, pytest.param(512, marks=pytest.mark.long)])
def found(request, root):
    environment = {**os.environ, "PYTHONPATH": str(root), "KERAS_BACKEND": "jax"}
    script = root / "tests" / "reliability" / "jax_devices_run.py"
    process = subprocess.run(
        [sys.executable, str(script), str(request.param)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    (one, *several), programs = json.loads(process.stdout.splitlines()[-1])
    return request.param, one, several, programs


def deviation(found, expected):
    """Largest difference, as a share of the largest value of its array."""
    return max(
        np.abs(np.subtract(a, b)).max() / max(np.abs(b).max(), 1e-30)
        for a, b in zip(found, expected, strict=True)
    )


def test_like_one_device(found):
    width, one, several, _ = found
    assert one["devices"] == 1
    for name, run in zip(("DataParallel", "ModelParallel"), several, strict=True):
        weights = deviation(run["weights"], one["weights"])
        scores = deviation(run["scores"], one["scores"])
        pairs = zip(run["mask"], one["mask"], strict=True)
        other = sum(len({*mine} - {*theirs}) for mine, theirs in pairs)
        print(
            f"{name}, width {width}: weights {weights:.2g}, scores {scores:.2g}, "
            f"{other} of {one['selected']} selected otherwise"
        )
        assert run["devices"] == 8
        assert run["samples"] == one["samples"]
        assert scores < SCORES
        assert run["differ"] == []  # replicas, bit for bit
        if width == 32:
            assert other == 0
            assert weights < WEIGHTS
        else:
            # Two scores of neighbouring rank may change places where they are closer
            # than rounding; what only one run trains then differs by its updates.
            assert other < 1e-3 * one["selected"]


def test_state_lies_where_its_weight_lies(found):
    _, one, (data, model), _ = found
    assert (data["sharded"], model["sharded"]) == ([], SHARDED)
    for run in (one, data, model):
        assert run["stage_1_elsewhere"] == run["stage_2_elsewhere"] == []
        # One vector of the selected scalars and their indices: they are small, and
        # every device has them whole.
        assert run["compact"] == 2
        assert run["compact_sharded"] == []


def test_bytes_are_those_of_the_formulas(found):
    """Those in docs/scaling.md."""
    width, one, (data, model), _ = found
    square = width * width
    small, large = 16 * width + 3 * width, 2 * square
    assert one["scalars"] == small + large
    head = 4 * width + 4  # whole: Adam's moments and nothing else
    # Anchor and mean, and of small weights the mean square of the gradient.
    of_square = 12 if square < SMALLEST_FACTORED else 8
    for run in (one, data):
        assert run["stage_1_bytes"] == 12 * small + of_square * large + 8 * head
    shares = 16 * width // 4 + width // 4 + 2 * width, square // 8 + square // 4
    assert model["stage_1_bytes"] == 12 * shares[0] + of_square * shares[1] + 8 * head
    for run in (one, data, model):
        selected = run["selected"] - head
        counters = 5 * 4
        assert run["stage_2_bytes"] == 16 * selected + 8 * head + counters


def test_selection_from_sharded_scores_is_exact(found):
    _, one, several, _ = found
    assert [run["selection_equal"] for run in (one, *several)] == [True] * 3


def test_no_weight_is_gathered(found):
    """In the programs that XLA compiled for a weight sharded in three ways."""
    *_, programs = found
    assert len(programs) == 7
    for program in programs:
        stage, scalars = program["stage"], program["scalars"]
        print(
            f"stage {stage}, weight of {scalars} along {program['axes']}: sends "
            f"{program['sent']} scalars, {program['selected']} selected, holds "
            f"{program['temporary_bytes']} bytes meanwhile"
        )
        if stage == 2:
            most = program["selected"]
        else:  # mean squares of the gradient: one, or those of rows and columns
            most = 1 if program["metric"] == "ScalarMetric" else program["lines"]
        assert program["sent"] == most
        # A gathered weight would take 4 bytes per scalar on each device.
        assert program["temporary_bytes"] < 4 * scalars / 2
