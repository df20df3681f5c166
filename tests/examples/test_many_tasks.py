import importlib
import json
import sys

import numpy as np
import pytest

from keras_bayestune.deltas import SparseDelta

pytest.importorskip("keras_hub")

WORDS = ["cat", "dog", "sun", "rain", "tree", "stone", "river", "bread"]


@pytest.fixture
def many_tasks(root):
    sys.path.insert(0, str(root / "examples"))
    yield importlib.import_module("many_tasks")
    sys.path.remove(str(root / "examples"))


@pytest.fixture
def preset(tmp_path, save_tiny_bert):
    return save_tiny_bert(tmp_path / "preset", WORDS, 16)


@pytest.fixture
def jsonl(tmp_path):
    """Pairs of words: do they begin with the same one?"""
    generator = np.random.default_rng(0)
    for task, low, high in (("stsb", 0.0, 5.0), ("mrpc", "0", "1")):
        (tmp_path / task).mkdir()
        for part in ("train", "val", "test"):
            rows = []
            for _ in range(16):
                first, second = (" ".join(generator.choice(WORDS, 3)) for _ in range(2))
                label = high if first[0] == second[0] else low
                rows.append({"text_a": first, "text_b": second, "label": label})
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / task / f"{part}.jsonl").write_text(text)
    return tmp_path


@pytest.fixture
def run(many_tasks, preset, jsonl, tmp_path):
    """Runs the example on two of its tasks; returns arguments and rows."""
    options = ["--smoke", "--fraction", "0.05", "--preset", preset]
    options += ["--tasks", "stsb", "mrpc", "--jsonl", str(jsonl)]
    options += ["--out", str(tmp_path / "out")]
    return lambda: (many_tasks.arguments(options), many_tasks.main(options))


def check(many_tasks, args, rows, printed):
    """The table is of what the files give in a fresh model."""
    assert json.loads((args.out / "results.json").read_text()) == rows
    assert [row["task"] for row in rows] == ["stsb", "mrpc"]
    assert [row["metric"] for row in rows] == ["Pearson", "accuracy"]
    assert "stsb / mrpc" in printed
    model = many_tasks.build(args)
    head = 2 * 8 + 2
    scalars = sum(int(np.prod(w.shape)) for w in model.trainable_weights) - head
    for row in rows:
        assert row["scalars"] == int(0.05 * scalars) + head
        file = args.out / f"{row['task']}.safetensors"
        assert row["file bytes"] == file.stat().st_size
        assert {"own", "mean", "TIES", "DARE"} < set(row)
        delta = SparseDelta.load(file)
        assert delta.metadata["task"] == row["task"]
        with delta.applied(model):
            _, test = many_tasks.load(row["task"], args)
            _, own = many_tasks.evaluate(row["task"], model, test)
        assert round(own, 3) == row["own"]


def test_table_of_given_deltas(many_tasks, run, monkeypatch, capsys):
    """All but the training, which takes longest."""

    def tune(task, train, args):
        base, tuned = many_tasks.build(args), many_tasks.build(args)
        rng = np.random.default_rng(len(task))
        for weight in tuned.trainable_weights:
            weight.assign(weight + rng.normal(size=weight.shape).astype("float32"))
        return SparseDelta.from_checkpoints(
            base,
            tuned,
            args.fraction,
            always=[w.path for w in base.weights if "logits" in w.path],
            metadata={"task": task},
        )

    monkeypatch.setattr(many_tasks, "tune", tune)
    check(many_tasks, *run(), capsys.readouterr().out)


# The mean token does without BERT's pooler, and Keras says so.
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables .'pooled")
@pytest.mark.long  # compiles two stages for each of two tasks
def test_tasks_on_one_backbone(many_tasks, run, capsys):
    check(many_tasks, *run(), capsys.readouterr().out)
