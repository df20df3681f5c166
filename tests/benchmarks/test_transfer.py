import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_bayestune as kbt

pytest.importorskip("keras_hub")
if keras.backend.backend() != "jax":
    pytest.skip("the programs are JAX's", allow_module_level=True)
from benchmarks.transfer import __main__ as command  # noqa: E402
from benchmarks.transfer import cells, efficientnet, prepare, rules  # noqa: E402
from benchmarks.transfer.network import Network, orders, schedule  # noqa: E402
from benchmarks.transfer.programs import Run, Selected, Whole, chunks  # noqa: E402

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(40, 5)).astype("float32"), RNG.integers(0, 3, 40)
STEPS = 12


@pytest.fixture(scope="module")
def network():
    layers = [keras.layers.Dense(7, "relu"), keras.layers.Dense(3)]
    return Network(keras.Sequential([keras.Input((5,)), *layers]), LOSS)


def rows(seed):
    return orders(len(DATA[1]), 8, STEPS, seed)


def batches(seed):
    return [(DATA[0][row], DATA[1][row]) for row in rows(seed)]


def assert_close(one, two):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_runs_side_by_side_are_those_of_the_library_one_by_one(network):
    start = network.weights()
    one_by_one, runs = [], []
    for seed, rate in ((0, 1e-3), (1, 3e-3), (2, 1e-2)):
        arguments = {"warmup_steps": 4, "burn_in_steps": 6, "thinning": 2}
        sampler = kbt.BayesTuneSGLD(rate, seed=seed, **arguments)
        sampler.build(network.model.trainable_variables)
        state = [np.array(v.value) for v in sampler.variables]
        rates = np.full(STEPS, rate, "float32")
        runs.append(Run(rows(seed), rates, start, state))
        model = keras.models.clone_model(network.model)
        model.set_weights(start)
        alone = kbt.BayesTuneSGLD(rate, seed=seed, **arguments)
        model.compile(alone, LOSS)
        alone.build(model.trainable_variables)
        for x, y in batches(seed):
            model.train_on_batch(x, y)
        one_by_one.append((model.get_weights(), alone.posterior_scales()))
    program = Whole(network, sampler, DATA, together=4)  # the last is a copy
    for (weights, state), (alone, scales) in zip(
        program.train(runs), one_by_one, strict=True
    ):
        assert_close(weights, alone)
        for variable, value in zip(sampler.variables, state, strict=True):
            variable.assign(value)
        assert_close(sampler.posterior_scales().values(), scales.values())
    assert_close(network.weights(), start)


def test_selected_scalars_train_as_with_sparse_optimizer(network):
    start = network.weights()
    flat = np.asarray(network.flat(start))
    held_out = DATA[0][:11]
    one_by_one, runs = [], []
    for seed, rate in ((0, 1e-2), (1, 1e-1)):
        indices = np.sort(np.random.default_rng(seed).permutation(network.count)[:20])
        rates = schedule(rate, STEPS)
        runs.append(Run(rows(seed), rates, flat[indices], indices.astype("int32")))
        model = keras.models.clone_model(network.model)
        model.set_weights(start)
        ends = np.cumsum([0, *network.sizes])
        variables = model.trainable_variables
        mask = kbt.SparseMask(
            {
                v.path: indices[(indices >= a) & (indices < b)] - a
                for v, a, b in zip(variables, ends, ends[1:], strict=False)
            },
            {v.path: tuple(v.shape) for v in variables},
        )
        adam = keras.optimizers.Adam(rate, global_clipnorm=1.0)
        model.compile(kbt.SparseOptimizer(adam, mask), LOSS)
        for (x, y), rate in zip(batches(seed), rates, strict=True):
            model.optimizer.learning_rate = rate
            model.train_on_batch(x, y)
        outputs = np.asarray(model(held_out))
        moved = np.asarray(network.flat(model.get_weights()))[indices]
        one_by_one.append([moved, outputs])
    program = Selected(network, 20, DATA, together=4)
    found = program.train(runs, [held_out], size=4)
    for (vector, outputs, seconds), alone in zip(found, one_by_one, strict=True):
        assert_close([vector, *outputs], alone)
        assert seconds >= 0


def test_runs_that_are_left_are_filled_up_to_one_of_two_sizes():
    found = list(chunks(range(22), together=16))
    assert found == [(list(range(16)), 16), ([16, 17, 18, 19, 20, 21] + [21] * 10, 6)]
    assert list(chunks([5], together=16)) == [([5, 5], 1)]
    assert list(chunks([5, 6], together=1)) == [([5], 1), ([6], 1)]


def test_rates_go_up_and_down():
    found = schedule(1.0, 20)
    assert found[:2].tolist() == [0.5, 1.0] and found[-1] == np.float32(1 / 19)
    assert np.all(np.diff(found[1:]) < 0)


def test_every_row_comes_once_in_a_pass():
    found = orders(10, 4, 5, seed=3)
    assert found.shape == (5, 4)
    assert sorted(found.ravel()[:10]) == sorted(found.ravel()[10:]) == list(range(10))


@pytest.mark.parametrize(
    ("tried", "following"),
    [
        ({}, [1e-3, 3e-3, 1e-2]),
        ({1e-3: 0.5}, [3e-3, 1e-2]),
        ({1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.5}, []),
        ({1e-3: 0.6, 3e-3: 0.6, 1e-2: 0.5}, [3e-4]),
        ({1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.7}, [3e-2]),
        ({3e-2: 0.7, 1e-2: 0.6, 3e-3: 0.5, 1e-3: np.nan, 1e-1: 0.8}, []),
    ],
)
def test_rates_are_tried_until_the_best_lies_inside(tried, following):
    cell = cells.Cell("trec", "random", 0.01, "always", 0)
    records = {rate: {"validation": {"accuracy": v}} for rate, v in tried.items()}
    assert cells.next_rates(cell, records) == following


WORDS = ["cat", "dog", "sun", "rain"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny encoder of random weights, and two tasks: one text, and pairs of them."""
    folder = tmp_path_factory.mktemp("transfer")
    rng = np.random.default_rng(0)
    for place, new in (
        ("text/trec", lambda a, b: {"text": f"{a} {b}", "label": str(WORDS.index(a))}),
        ("glue/stsb", lambda a, b: {"text_a": a, "text_b": b, "label": 5.0 * (a == b)}),
    ):
        (folder / place).mkdir(parents=True)
        for part in ("train", "val", "test"):
            lines = [
                json.dumps(new(a, b)) + "\n"
                for a, b in rng.choice(WORDS, (40, 2)).tolist()
            ]
            (folder / place / f"{part}.jsonl").write_text("".join(lines))
    return folder


def run(folder, *arguments, do="run"):
    fixed = ["--prepared", str(folder / "prepared"), "--out", str(folder / "out")]
    fixed += ["--collected", str(folder / "collected"), "--label", "tiny"]
    fixed += ["--selection-steps", "8", "--finetune-steps", "6", "--batch-size", "4"]
    command.main([do, *fixed, "--seeds", "1", "--head-steps", "2", *arguments])


@pytest.fixture(scope="module")
def finished(prepared, save_tiny_bert):
    """Three rules that share two programs."""
    preset = save_tiny_bert(prepared / "preset", WORDS, 8)
    data = ["--data", str(prepared), "--preset", preset, "--length", "8"]
    run(prepared, "--tasks", "trec", "stsb", *data, do="prepare")
    some = ["BayesTune", "gradient per neuron", "head only"]
    run(prepared, "--tasks", "trec", "--fractions", "0.05", "--methods", *some)
    return prepared


def records(folder, task):
    lines = (folder / "collected" / "tiny.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {r["cell"]["method"]: r for r in found if r["cell"]["task"] == task}


def check(found):
    """What holds for every cell."""
    for record in found.values():
        assert sum(record["steps"].values()) == 14
        rates = sorted(map(float, record["validation"]))
        tried = {r: {"validation": record["validation"][f"{r:g}"]} for r in rates}
        cell = cells.Cell(**record["cell"])
        assert cells.next_rates(cell, tried) == []
        assert record["rate"] == cells.best_rate(tried)


HEAD = 8 * 4 + 4
BACKBONE = (9 + 8 + 2 + 2) * 8  # embeddings, and their normalisation
BACKBONE += 4 * (8 * 8 + 8) + 2 * 8 * 16 + 16 + 8 + 4 * 8  # one layer


def test_rules_take_equal_steps_and_search_their_rate(finished, capsys):
    found = records(finished, "trec")
    check(found)
    assert {m: r["steps"]["selection"] for m, r in found.items()} == {
        "BayesTune": 8,
        "gradient per neuron": 2 + 6,
        "head only": 0,
    }
    counts = {method: record["trained scalars"] for method, record in found.items()}
    assert counts["head only"] == HEAD
    assert counts["BayesTune"] == int(0.05 * BACKBONE) + HEAD
    assert list(found["BayesTune"]["test"]) == ["accuracy", "NLL", "ECE", "Brier"]
    capsys.readouterr()
    run(finished, "--tasks", "trec", do="table")
    assert "| gradient per neuron |" in capsys.readouterr().out


@pytest.mark.long
def test_every_rule_runs(finished):
    arguments = ["--fractions", "0.05", "--together", "2"]
    run(finished, "--tasks", "trec", *arguments)
    run(finished, "--tasks", "stsb", *arguments, "--methods", "BayesTune", "SNIP")
    found = records(finished, "trec")
    assert found.keys() == rules.RULES.keys()
    check(found)
    assert found["full"]["trained scalars"] == BACKBONE + HEAD
    stsb = records(finished, "stsb")
    check(stsb)
    assert [list(r["test"]) for r in stsb.values()] == [["Spearman", "Pearson"]] * 2


def test_a_killed_run_goes_on(finished, capsys):
    folder = finished / "out" / "tiny"
    cell = cells.Cell("trec", "BayesTune", 0.05, "always", 0)
    before = json.loads((folder / cell.file_name).read_text())
    (folder / cell.file_name).unlink()
    (finished / "collected" / "tiny.jsonl").unlink()
    place = folder / "runs" / cell.file_name.removesuffix(".json")
    (place / "0.003.json").unlink()
    mask = folder / "masks" / f"{place.name}.npz"
    made = mask.stat().st_mtime_ns
    capsys.readouterr()
    run(finished, "--tasks", "trec", "--fractions", "0.05", "--methods", "BayesTune")
    assert capsys.readouterr().out.count("seed 0") == 1
    assert mask.stat().st_mtime_ns == made
    again = json.loads((folder / cell.file_name).read_text())
    for name in ("validation", "test"):
        assert again[name] == before[name]


@pytest.mark.long
def test_a_run_needs_no_tensorflow(finished):
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'tensorflow_text', 'torch', 'PIL', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks.transfer.__main__ import main\n"
        "main(sys.argv[1:])\n"
    )
    arguments = ["run", "--prepared", str(finished / "prepared"), "--tasks", "trec"]
    arguments += ["--out", str(finished / "bare"), "--seeds", "1", "--label", "bare"]
    arguments += ["--collected", str(finished / "bare"), "--methods", "head only"]
    arguments += ["--selection-steps", "2", "--finetune-steps", "2"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=finished,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 cells" in done.stdout


@pytest.mark.long
def test_weights_of_efficientnet_land_in_their_layers():
    backbone = efficientnet.new_backbone(32)
    state = {}
    for name, key in efficientnet._convolutions():
        shape = backbone.get_layer(name).kernel.shape
        if name.endswith("dwconv"):
            shape = (*shape[:2], shape[3], shape[2])
        state[f"{key}.weight"] = RNG.normal(size=shape).transpose(3, 2, 0, 1)
    for name, key in efficientnet._normalisations():
        shape = backbone.get_layer(name).gamma.shape
        for field in ("weight", "bias", "running_mean", "running_var"):
            state[f"{key}.{field}"] = RNG.random(shape)
    efficientnet.load(backbone, state)
    assert len(state) == len(backbone.weights)
    kernel = state["_blocks.1._depthwise_conv.weight"]
    found = np.asarray(backbone.get_layer("block2a_dwconv").kernel)
    np.testing.assert_allclose(found[..., 0], kernel[:, 0].transpose(1, 2, 0))
    moving = np.asarray(backbone.get_layer("top_bn").moving_variance)
    np.testing.assert_allclose(moving, state["_bn1.running_var"])


def test_images_are_decoded(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    import io

    pixels = np.full((2, 8, 8, 3), 200, "uint8")
    pieces = []
    for image in pixels:
        buffer = io.BytesIO()
        image_module.fromarray(image).save(buffer, "JPEG")
        pieces.append(np.frombuffer(buffer.getvalue(), "uint8"))
    ends = np.cumsum([0, *map(len, pieces)])
    file = {"test_jpeg": np.concatenate(pieces), "test_offsets": ends}
    np.testing.assert_array_equal(prepare.decoded(file, "test"), pixels)
