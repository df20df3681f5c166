import importlib
import json
import sys

import keras
import pytest

import keras_bayestune as kbt

pytest.importorskip("keras_hub")


@pytest.fixture
def text(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "examples"))
    return importlib.import_module("text")


def test_sentences_are_first_lines_of_docstrings(text, tmp_path):
    (tmp_path / "one.py").write_text(
        'def f():\n    """Say five words or more.\n\n    And go on."""\n'
        'class C:\n    """Too short."""\n    def g(self): pass\n'
    )
    (tmp_path / "broken.py").write_text("def")
    found = [[*text.first_lines(file)] for file in sorted(tmp_path.iterdir())]
    assert found == [[], ["Say five words or more."]]


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="one backend is enough, the quickest"
)
def test_the_small_size_runs(text, tmp_path, save_tiny_bert, monkeypatch):
    monkeypatch.setattr(text, "first_lines", lambda file: [f"a file, {file.stem}"])
    preset = save_tiny_bert(tmp_path / "preset", ["a", "file", "test", "core"], 24)
    rows = text.main(["--smoke", "--preset", str(preset), "--out", str(tmp_path)])
    assert json.loads((tmp_path / "result.json").read_text()) == rows
    counts = [row["trained scalars"] for row in rows.values()]
    tuned, random, head, everything = counts
    assert head < tuned == random < everything
    delta = kbt.SparseDelta.load(tmp_path / "delta.safetensors")
    assert delta.count == tuned
    assert (tmp_path / "scales.png").exists()
    assert sys.modules.pop("text") is text
