"""Training processes killed by SIGKILL; the run ends as the one that was left alone."""

import json
import os
import subprocess
import sys

import pytest

PHASES = ["burn-in", "sampling", "stage 2", "warm-up"]


def run(root, folder, kills, mode):
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    script = root / "tests" / "reliability" / "killed_run.py"
    found = subprocess.run(
        [sys.executable, str(script), str(folder), str(kills), mode],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return json.loads(found.stdout.splitlines()[-1])


def check(found, kills):
    assert found["equal"], found
    assert found["kills"] >= kills
    assert found["samples"][0] == found["samples"][1] > 0
    # No state, and nothing half written, is left when the run is over.
    assert found["left"] == ["phases", "result.json"]


@pytest.mark.skipif(os.name != "posix", reason="forks, and kills by SIGKILL")
def test_three_kills(root, tmp_path):
    check(run(root, tmp_path, 3, "state"), 3)


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="forks, and kills by SIGKILL")
@pytest.mark.parametrize("mode", ["state", "keras", "clock"])
def test_thirty_kills(mode, root, tmp_path):
    found = run(root, tmp_path, 32, mode)
    print(json.dumps(found))  # for docs/reliability.md: pytest -s shows it
    check(found, 30)
    assert found["phases"] == PHASES
    if mode == "state":
        assert set(found["kinds"]) == {"batch", "fsync", "replace"}
