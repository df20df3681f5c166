"""What a stage-1 step asks of an accelerator, shown on a CPU that is taken for one."""

import functools
from collections import Counter

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD
from keras_bayestune.updates import elementwise

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="what PyTorch dispatches and compiles"
)
WIDTH, LAYERS = 8, 12
LAYER = [(WIDTH, 2, 4), (2, 4)] * 3 + [(2, 4, WIDTH), (WIDTH,)] + [(WIDTH,)] * 4
LAYER += [(WIDTH, 16), (16,), (16, WIDTH), (WIDTH,)]
SMALL = [(50, WIDTH), (32, WIDTH), (2, WIDTH), (WIDTH,), (WIDTH,), *LAYER * LAYERS]
LARGE = [(160, 120), (12, 70, 20), (130, 140), (150, 131), (21, 8, 100), (20_000,)]


def run(shapes, updates, inside=lambda update: update()):
    """Values and scales after some updates, each of which `inside` calls."""
    optimizer = BayesTuneSGLD(
        1e-3,
        effective_size=1e6,
        warmup_steps=2,
        burn_in_steps=3,
        thinning=2,
        exclude=["head"],
        weight_decay=0.1,
        seed=0,
    )
    rng = np.random.default_rng(0)
    shapes = [*shapes, (WIDTH, 2)]
    names = [f"w{i}" for i in range(len(shapes) - 1)] + ["head"]
    weights = [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
        for shape, name in zip(shapes, names, strict=True)
    ]
    optimizer.build(weights)
    for _ in range(updates):
        gradients = [
            ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))
            for shape in shapes
        ]
        inside(functools.partial(optimizer.apply, gradients, weights))
    scales = optimizer.posterior_scales().values()
    return [*map(ops.convert_to_numpy, weights), *scales]


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(elementwise, "runs_on_cpu", lambda tensors: False)


def test_operations_of_a_step(accelerator):
    """Of a BERT of 12 layers, most of which are views: they launch nothing."""
    from torch.utils._python_dispatch import TorchDispatchMode

    counts = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            counts[-1][str(function)] += 1
            return function(*arguments, **(keywords or {}))

    def counted(update):
        counts.append(Counter())
        with Count():
            update()

    run(SMALL, 6, counted)
    steps = counts[1:]  # the first one fits nothing, but PyTorch may set things up
    for step in steps:
        assert step == steps[0]  # whatever phase the chain is in
        assert sum(step.values()) < 900
        views = step["aten.view.default"] + step["aten.detach.default"]
        assert sum(step.values()) - views < 350
        # The host reads nothing, and sends one number: Keras's counter of steps.
        assert step["aten._local_scalar_dense.default"] == 0
        assert step["aten.lift_fresh.default"] == 1


def test_one_compilation_for_all_lengths(monkeypatch, accelerator):
    import torch

    expected = run([*LARGE, *SMALL[:9]], 6)
    graphs, compile_ = [], torch.compile

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    def compile_whole(function, dynamic):
        return compile_(function, dynamic=dynamic, backend=backend, fullgraph=True)

    monkeypatch.setattr(elementwise, "has_triton", lambda: True)
    monkeypatch.setattr(torch, "compile", compile_whole)
    torch._dynamo.reset()
    after = []

    def noted(update):
        update()
        after.append(len(graphs))

    found = run([*LARGE, *SMALL[:9]], 6, noted)
    # One for each number of axes: squares, update and score of arrays of one, two and
    # three axes; and squares and Adam's update of the head.
    assert after == [3 * 3 + 2] * 6
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
