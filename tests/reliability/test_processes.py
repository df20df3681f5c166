"""Two processes train like one: torch's DDP over gloo, and two JAX hosts."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()


def start(root, script, world, last):
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "KERAS_BACKEND": BACKEND,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, root / "tests" / "reliability" / script]
            + [str(rank), str(world), str(last)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    found = []
    for process in processes:
        try:
            output, errors = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        assert process.returncode == 0, errors[-3000:]
        found.append(json.loads(output.splitlines()[-1]))
    return found


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def assert_close(found, expected, name):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)
    largest = max(
        np.abs(np.subtract(a, b)).max() / max(np.abs(b).max(), 1e-30)
        for a, b in zip(found, expected, strict=True)
    )
    print(f"{name} deviate by {largest:.2g} of the largest of their array")


@pytest.mark.long
@pytest.mark.skipif(BACKEND != "torch", reason="torch's own way")
def test_data_parallel_processes_of_torch(root, tmp_path):
    (expected,) = start(root, "ddp_run.py", 1, tmp_path / "one")
    found = start(root, "ddp_run.py", 2, tmp_path / "two")
    assert found[0] == found[1]  # bit for bit, the digest says
    assert (expected["skipped"], expected["samples"]) == (1, 4)
    for name in ("skipped", "samples", "mask"):
        assert found[0][name] == expected[name]
    for name in ("weights", "scores"):
        assert_close(found[0][name], expected[name], name)


@pytest.mark.long
@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own way")
def test_hosts_of_jax(root):
    (expected,) = start(root, "jax_hosts_run.py", 1, 0)
    found = start(root, "jax_hosts_run.py", 2, free_port())
    assert found[0] == found[1]
    assert (found[0]["processes"], found[0]["devices"]) == (2, 4)
    assert found[0]["sharded"]
    assert_close(found[0]["arrays"], expected["arrays"], "weights and scores")
