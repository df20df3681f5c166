import threading
import tracemalloc

import keras
import numpy as np
import pytest

from keras_bayestune.deltas import DeltaSet, SparseDelta, swap
from keras_bayestune.deltas.variable import VariableDelta


@pytest.fixture
def tasks(base, small):
    tasks = DeltaSet(base)
    for seed in (1, 2, 3):
        tasks.add(f"task{seed}", small.tune(small.build(), seed).delta)
    return tasks


@pytest.fixture
def expected(small):
    """Bits of the model for each task, and of the base (None)."""
    bits = {
        f"task{seed}": small.bits(small.tune(small.build(), seed).model)
        for seed in (1, 2, 3)
    }
    return bits | {None: small.bits(small.build())}


def test_swaps(tasks, expected, small):
    assert list(tasks) == ["task1", "task2", "task3"]
    assert len(tasks) == 3
    assert "task1" in tasks
    assert "other" not in tasks
    assert tasks.active is None
    rng = np.random.default_rng(0)
    for _ in range(30):
        name = rng.choice(["task1", "task2", "task3", None])
        tasks.deactivate() if name is None else tasks.activate(name)
        assert tasks.active == name
        assert small.bits(tasks.model) == expected[name]
    tasks.deactivate()
    tasks.deactivate()
    assert small.bits(tasks.model) == expected[None]


def test_using_restores_what_was_active(tasks, expected, small):
    tasks.activate("task1")
    with tasks.using("task2") as model:
        assert model is tasks.model
        assert small.bits(model) == expected["task2"]
        with tasks.using(None):
            assert small.bits(model) == expected[None]
        assert tasks.active == "task2"
    assert tasks.active == "task1"
    with pytest.raises(RuntimeError, match="inside"), tasks.using("task3"):
        raise RuntimeError("inside")
    assert small.bits(tasks.model) == expected["task1"]


def test_add_while_another_is_active_and_from_a_file(tasks, small, tmp_path):
    tasks.activate("task1")
    fourth = small.tune(small.build(), seed=4)
    fourth.delta.save(tmp_path / "d.safetensors")
    tasks.add("task4", tmp_path / "d.safetensors")
    assert tasks.active == "task1"
    assert tasks["task4"] == fourth.delta
    tasks.activate("task4")
    assert small.bits(tasks.model) == small.bits(fourth.model)


def test_remove(tasks, expected, small):
    tasks.activate("task1")
    tasks.remove("task2")
    assert tasks.active == "task1"
    tasks.remove("task1")
    assert small.bits(tasks.model) == expected[None]
    assert list(tasks) == ["task3"]


def test_refuses(tasks, small):
    with pytest.raises(ValueError, match="no delta 'other'.*'task1', 'task2', 'task3'"):
        tasks.activate("other")
    with pytest.raises(ValueError, match="no delta 'other'"):
        tasks.remove("other")
    with pytest.raises(ValueError, match="no delta 'other'"):
        tasks["other"]
    with pytest.raises(ValueError, match="There is a delta 'task1' already"):
        tasks.add("task1", tasks["task2"])
    with pytest.raises(ValueError, match="is not the base"):
        tasks.add("task4", small.tune(small.build(seed=9)).delta)
    assert len(tasks) == 3


def test_weights_changed_while_active(tasks, small):
    tasks.activate("task1")
    tasks.model.set_weights([w * 1.5 for w in tasks.model.get_weights()])
    before = small.bits(tasks.model)
    with pytest.raises(ValueError, match="has changed since the delta was applied"):
        tasks.activate("task2")
    assert tasks.active == "task1"
    assert small.bits(tasks.model) == before


def test_weights_changed_while_none_is_active(tasks, small):
    tasks.model.set_weights([w * 1.5 for w in tasks.model.get_weights()])
    before = small.bits(tasks.model)
    with pytest.raises(ValueError, match="is not the base"):
        tasks.activate("task2")
    assert tasks.active is None
    assert small.bits(tasks.model) == before


def test_whole_variables_are_read_once_only(base, small, monkeypatch):
    read = []
    checksum = swap.variable_checksum
    monkeypatch.setattr(
        swap, "variable_checksum", lambda v: (read.append(v.path), checksum(v))[1]
    )
    tasks = DeltaSet(base)
    assert len(read) == 10
    tasks.add("task", small.tune(small.build()).delta)
    tasks.activate("task")
    tasks.deactivate()
    assert len(read) == 10


def test_memory_of_a_swap_is_that_of_the_selection():
    layer = keras.layers.Embedding(2_000, 500)
    layer.build()
    model = keras.Sequential([keras.Input((1,)), layer])
    array = keras.ops.convert_to_numpy(layer.embeddings.value)
    flat_indices = np.arange(0, array.size, 1000)
    stored = VariableDelta.sparse(
        array, flat_indices, np.zeros(len(flat_indices), "float32")
    )
    tasks = DeltaSet(model)
    tasks.add("task", SparseDelta({layer.embeddings.path: stored}))
    tasks.activate("task")  # compiled, where the backend does
    tasks.deactivate()
    tracemalloc.start()
    tasks.activate("task")
    tasks.deactivate()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 1,000 scalars of a million: some arrays of 8 kB, never the 4 MB.
    assert peak < 300_000


def test_threads_do_not_mix(tasks, expected, small):
    wrong = []

    def serve(name):
        for _ in range(5):
            with tasks.using(name) as model:
                if small.bits(model) != expected[name]:
                    wrong.append(name)

    threads = [threading.Thread(target=serve, args=(f"task{n}",)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong
    assert small.bits(tasks.model) == expected[None]


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("active", [None, "task1"])
def test_quantised(tasks, small, active):
    if active:
        tasks.activate(active)
    tasks.model.quantize("int8")
    before = small.bits(tasks.model)
    uses = [lambda: tasks.activate("task2"), lambda: tasks.using("task2").__enter__()]
    if active:
        uses += [tasks.deactivate, lambda: tasks.remove("task1")]
    for use in uses:
        with pytest.raises(ValueError, match="quantised after the delta met it"):
            use()
    assert tasks.active == active
    assert small.bits(tasks.model) == before
