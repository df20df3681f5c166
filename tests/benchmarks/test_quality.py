import json

import keras
import numpy as np
import pytest

import keras_bayestune as kbt

pytest.importorskip("sklearn")
pytest.importorskip("keras_hub")
from benchmarks.quality import __main__ as command  # noqa: E402
from benchmarks.quality import (  # noqa: E402
    cells,
    evaluation,
    figure,
    methods,
    stage2,
    table,
)
from benchmarks.quality.digits import BACKBONE, Digits, new_model  # noqa: E402
from benchmarks.quality.vit import Vit  # noqa: E402

HEAD = 64 * 10 + 10


def run(folder, *arguments, do="run"):
    fixed = ["--out", str(folder), "--collected", str(folder / "collected")]
    fixed += ["--selection-steps", "20", "--finetune-steps", "20", "--seeds", "1"]
    command.main([do, *fixed, *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Four methods on one task under a budget that means nothing."""
    folder = tmp_path_factory.mktemp("quality")
    arguments = ["--tasks", "turned", "--fractions", "0.02", "--methods"]
    arguments += ["BayesTune", "random", "head only", "full"]
    run(folder, *arguments)
    return folder, arguments


def records(folder):
    return cells.Results("digits-20-20", folder, folder / "collected").read()


def test_every_method_has_the_same_number_of_steps(finished):
    found = {cell.method: r for cell, r in records(finished[0]).items()}
    assert {m: r["steps"] for m, r in found.items()} == {
        "BayesTune": {"selection": 20, "stage 2": 20},
        "random": {"selection": 0, "stage 2": 40},
        "head only": {"selection": 0, "stage 2": 40},
        "full": {"selection": 0, "stage 2": 40},
    }


def test_trained_scalars_are_counted(finished):
    found = {c.method: r["trained scalars"] for c, r in records(finished[0]).items()}
    assert found == {
        "BayesTune": HEAD + int(0.02 * BACKBONE),
        "random": HEAD + int(0.02 * BACKBONE),
        "head only": HEAD,
        "full": HEAD + BACKBONE,
    }


def test_the_rate_is_the_best_on_validation_data(finished):
    for record in records(finished[0]).values():
        scores = {r: v["accuracy"] for r, v in record["validation"].items()}
        assert len(scores) == 3
        assert scores[str(record["rate"])] == max(scores.values())
        assert set(record["test"]) == {"accuracy", "NLL", "ECE", "Brier"}


def test_a_finished_cell_is_not_run_again(finished, monkeypatch, capsys):
    folder, arguments = finished
    before = records(folder)
    files = sorted((folder / "digits-20-20").glob("*.json"))
    assert len(files) == 4
    lost = json.loads(files[0].read_text())
    files[0].unlink()
    run(folder, *arguments)
    assert capsys.readouterr().out.count("seed 0") == 1
    again = records(folder)[cells.Cell(**lost["cell"])]
    # The same numbers: all randomness comes from the seed.
    assert again["test"] == lost["test"] and again["validation"] == lost["validation"]

    def fail(*arguments):
        raise AssertionError("a finished cell was run")

    run(folder, do="collect")
    for file in (folder / "digits-20-20").glob("*.json"):
        file.unlink()
    monkeypatch.setattr(cells, "run_cell", fail)
    run(folder, *arguments)
    assert set(records(folder)) == set(before)


def test_budgets_and_last_values_share_one_selection(tmp_path):
    chosen = ["BayesTune, last values", "BayesTune, per tensor"]
    arguments = ["--tasks", "turned", "--fractions", "0.02", "--methods", *chosen]
    run(tmp_path, *arguments)
    found = {c.method: r["trained scalars"] for c, r in records(tmp_path).items()}
    assert found == dict.fromkeys(chosen, HEAD + int(0.02 * BACKBONE))
    masks = tmp_path / "digits-20-20" / "masks"
    assert len(list(masks.iterdir())) == len(methods.FORMS)
    [values] = masks.glob("*BayesTune-last-values-None*/0.02.values")
    mask = kbt.SparseMask.load(values.with_name("0.02.safetensors"))
    last = cells.load_file(values)
    assert {p: len(v) for p, v in last.items()} == {
        path: len(found) for path, found in mask.indices.items() if len(found)
    }
    model = new_model()
    cells.give_to_selected(model, mask, last)
    kernel = model.get_layer("head").kernel.numpy()
    np.testing.assert_array_equal(kernel.ravel(), last["head/kernel"])


def test_the_table_has_a_row_for_each_method(finished, capsys):
    run(finished[0], do="table")
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "p = 2 %: 1 blocks, 1 seeds."
    assert {row.split("|")[1].strip() for row in rows[4:]} == {
        "BayesTune",
        "random",
        "full",
        "head only",
    }


def test_masked_adam_is_sparse_adam():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8, 8, 1)).astype("float32")
    y = rng.integers(0, 10, 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = new_model()
    start = model.get_weights()
    scores = {v.path: rng.random(v.shape) for v in model.trainable_variables}
    mask = kbt.SparseMask.from_scores(scores, 0.1)
    found = []
    for compiles_once in (False, True):
        model = new_model()
        model.set_weights(start)
        training = stage2.Stage2(model, mask, loss, compiles_once)
        # Made anew each time: a second pass over one data set has another order.
        training.train(evaluation.batches((x, y), 16, seed=0), 9, 3e-2)
        training.train(
            evaluation.batches((x, y), 16, seed=0), 6, 1e-2
        )  # from the start
        found.append(model.get_weights())
    moved = 0
    for one, two, before in zip(*found, start, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
        moved += np.count_nonzero(one != before)
        np.testing.assert_array_equal(one == before, two == before)
    assert 0.9 * mask.count < moved <= mask.count


def test_lora_has_about_as_many_scalars():
    suite = Digits()
    problem = suite.problem("turned", 0, "always")
    assert suite.with_lora(problem, 100) is None
    model = suite.with_lora(problem, 1244)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == 1280 + HEAD
    x = problem.test[0][:8]
    problem.model.set_weights(problem.weights)
    outputs = (keras.ops.convert_to_numpy(m(x)) for m in (model, problem.model))
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


def test_the_parts_of_a_task_share_no_image():
    suite = Digits()
    for task in suite.tasks:
        problem = suite.problem(task, 3, "always")
        parts = problem.train, problem.validation, problem.test
        if task != "new classes":
            assert [len(y) for _, y in parts] == [
                100 if "trans" in task else 200,
                247,
                500,
            ]
        else:
            assert min(problem.test[1].min(), problem.train[1].min()) == 5
        images = np.concatenate([x.reshape(len(x), -1) for x, _ in parts])
        assert len(np.unique(images, axis=0)) == len(images)


@pytest.fixture
def text_data(tmp_path, save_tiny_bert):
    """A tiny BERT of random weights, and a task of word pairs."""
    words = ["cat", "dog", "sun", "rain"]
    preset = save_tiny_bert(tmp_path / "preset", words, 48)
    (tmp_path / "stsb").mkdir()
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        rows = [
            {"text_a": a, "text_b": b, "label": 5.0 * (a == b)}
            for a, b in rng.choice(words, (40, 2)).tolist()
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "stsb" / f"{part}.jsonl").write_text(lines)
    return ["--suite", "text", "--preset", preset, "--jsonl", str(tmp_path)]


def test_text(tmp_path, text_data):
    arguments = ["--tasks", "stsb", "--fractions", "0.02", "--rates", "0.001", "0.002"]
    arguments += ["--methods", "BayesTune", "LoRA", "full"]
    run(tmp_path, *text_data, *arguments)
    found = cells.Results("text-20-20", tmp_path, tmp_path).read()
    found = {cell.method: record for cell, record in found.items()}
    assert found.keys() == {"BayesTune", "LoRA", "full"}
    size = (9 + 48 + 2 + 2) * 8  # embeddings, and their normalisation
    size += 4 * (8 * 8 + 8) + 2 * 8 * 16 + 16 + 8 + 4 * 8  # one layer
    counts = {method: record["trained scalars"] for method, record in found.items()}
    assert counts == {
        "BayesTune": int(0.02 * size) + 9,
        "LoRA": 2 * (8 * 2 + 4) + 9,
        "full": size + 9,
    }
    for method, record in found.items():
        assert list(record["test"]) == ["Spearman", "Pearson"]
        if method != "full":  # it has rates of its own
            assert record["validation"].keys() == {"0.001", "0.002"}


def record(value):
    return {
        "test": {"accuracy": value, "NLL": 0.1, "ECE": 0.2, "Brier": 0.3},
        "seconds": {"selection": 1.0, "stage 2": 2.0},
        "trained scalars": 10,
        "stored bytes": 40,
        "peak megabytes": 5,
    }


def test_ranks_and_paired_differences():
    found = {}
    for seed in range(4):
        for task in ("a", "b"):
            at = lambda m, p=0.02, t=task, s=seed: cells.Cell(t, m, p, "always", s)  # noqa: E731
            found[at("BayesTune")] = record(0.8 + seed / 100)
            found[at("random")] = record(0.79 + seed / 100)
            found[at("Fisher")] = record(0.8 + seed / 100)
            found[at("full", None)] = record(0.9)
            if seed == 3:
                found[at("magnitude")] = record(0.1)  # just begun: left out
    text = table.markdown(found, "always")
    rows = {row.split(" | ")[0][2:]: row.split(" | ") for row in text.splitlines()[4:]}
    assert list(rows) == ["BayesTune", "Fisher", "random", "full"]
    # a, b, mean, rank, difference
    assert rows["random"][3:6] == ["80.50", "3.00", "+1.00 [+1.00, +1.00]"]
    assert rows["Fisher"][4:6] == ["1.50", "+0.00 [+0.00, +0.00]"]
    assert rows["full"][4] == "-"
    assert rows["BayesTune"][1] == "81.50 ± 0.65"


def test_the_ranks_of_two_suites_count_what_both_have():
    def suite(tasks, values):
        return {
            cells.Cell(t, m, 0.02, "always", s): record(value)
            for s in range(2)
            for t in tasks
            for m, value in values.items()
        }

    one = suite("ab", {"BayesTune": 0.9, "random": 0.8, "Fisher": 0.7, "full": 1.0})
    other = suite("c", {"BayesTune": 0.8, "random": 0.9, "LoRA": 0.99, "full": 1.0})
    text = table.together({"vision": one, "text": other}, "always")
    assert text.splitlines() == [
        "p = 2 %.",
        "",
        "| method | vision, 4 blocks | text, 2 blocks | mean rank |",
        "| --- | --- | --- | --- |",
        "| BayesTune | 1.00 | 2.00 | 1.50 |",
        "| random | 2.00 | 1.00 | 1.50 |",
    ]


def test_ranks_are_of_the_methods_and_seeds_asked_for(tmp_path, capsys):
    for label in ("one", "two"):
        results = cells.Results(label, tmp_path, tmp_path / "collected")
        for seed in range(2):  # of which `run` asks for the first
            for method, value in {"BayesTune": 0.8, "random": 0.9, "Fisher": 1}.items():
                cell = cells.Cell("a", method, 0.02, "always", seed)
                results.write(cell, record(value))
    asked = ["--labels", "one", "two", "--methods", "BayesTune", "random"]
    run(tmp_path, *asked, do="ranks")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| method | one, 1 blocks | two, 1 blocks | mean rank |",
        "| --- | --- | --- | --- |",
        "| random | 1.00 | 1.00 | 1.00 |",
        "| BayesTune | 2.00 | 2.00 | 2.00 |",
    ]


def test_the_figure_has_a_curve_for_each_method(finished, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    found = {
        cells.Cell(t, m, p, "always", s): record(0.5 + 0.1 * s + p)
        for m in ("random", "BayesTune")
        for p in (0.1, 0.2)
        for t in "ab"
        for s in range(2)
    }
    at_p = {0.1: [40.0, 30.0], 0.2: [30.0, 20.0]}
    errors = figure.errors_of(found, "always")
    assert list(errors) == ["BayesTune", "random"]
    for curve in errors.values():
        assert curve.keys() == at_p.keys()
        for p, values in curve.items():
            np.testing.assert_allclose(values, at_p[p])
    file = tmp_path / "errors.png"
    run(finished[0], "--figure", str(file), do="figure")
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_stability(tmp_path, capsys):
    small = ["--tasks", "turned", "--fractions", "0.02", "--chains", "2"]
    # 80 steps: 40 draws after burn-in, ten of which the sample size needs.
    run(tmp_path, *small, "--selection-steps", "80", do="stability")
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if len(row) == 2 and row[1][0] in "0123456789"]
    found = {name[2:]: value[:-2] for name, value in rows}
    for heading in ("overlap of two chains", "BayesTune, selected scalars"):
        assert found.pop(heading) == "2 %"
    found = {name: float(value) for name, value in found.items()}
    assert found.pop("draws of a chain") == 40
    assert 1 < found.pop("effective draws, median") < 40 * np.log10(40)
    assert 0.5 < found.pop("probability in the top p, by the chain itself") <= 1
    assert found.pop("chance") == 0.02
    assert set(found) == {
        "BayesTune",
        "movement, SGD",
        "movement, Adam",
        "movement, Adam, v^(1/4)",
        "share of the other chains that choose it",
    }
    assert all(0.05 < value < 1 for value in found.values())


def test_a_vit_learns_digits_and_moves_on():
    suite = type("Small", (Vit,), {"pretraining_epochs": 1})()
    problem = suite.problem("turned", 0, "always")
    assert sum(w.size for w in problem.weights) == 17888 + 32 * 10 + 10
    assert suite.with_lora(problem, 50) is None
    model = suite.with_lora(problem, 1117)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == 1088 + 330
    x = problem.test[0][:8]
    problem.model.set_weights(problem.weights)
    outputs = (keras.ops.convert_to_numpy(m(x)) for m in (model, problem.model))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = table.interval(rng.normal(1.0, 2.0, 40), seed=trial)
        inside += low < 1.0 < high
    assert 180 <= inside <= 198  # 95 % of 200, and the bootstrap is a little short


def test_only_fraction_free_methods_have_no_fraction():
    plan = list(cells.cells_of(["a"], methods.METHODS, [0.1, 0.2], "always", [0]))
    own = {cell.method for cell in plan if cell.fraction is None}
    assert own == set(methods.NO_FRACTION)
    assert len(set(plan)) == 3 + 2 * (len(methods.METHODS) - 3)


@pytest.mark.parametrize(
    ("values", "best", "tried"),
    [
        ([1, 2, 3, 2, 1], 2, {1, 2, 3}),
        ([5, 4, 3, 2, 1], 0, {0, 1, 2, 3}),
        ([1, 2, 3, 4, 5], 4, {1, 2, 3, 4}),
        ([-np.inf, 2, -np.inf, -np.inf, 9], 1, {0, 1, 2, 3}),
        ([3, 1, 2], 0, {0, 1, 2}),  # of three, all
        ([1, 2], 1, {0, 1}),
    ],
)
def test_best_rate_walks_uphill(values, best, tried):
    seen = []

    def value(i):
        seen.append(i)
        return values[i]

    assert cells.best_rate(range(len(values)), value) == best
    assert set(seen) == tried
    assert len(seen) == len(tried)
