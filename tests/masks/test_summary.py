import io

import numpy as np

from keras_bayestune.masks import SparseMask


def example_mask():
    scores = {
        "encoder/layer_0/kernel": np.array([0.5, 1.5]),
        "encoder/layer_0/bias": np.array([4.0, 4.0, 4.0, 4.0]),
        "embedding": np.linspace(0, 0.1, 1994),
    }
    return SparseMask.from_scores(scores, 0.002, always={"head/kernel": (5, 2)})


PLAIN = """\
layer            scalars  selected  fraction  mean score
encoder/layer_0        6         4   66.67 %           3
embedding          1,994         0    0.00 %        0.05
head (always)         10        10  100.00 %           -
total              2,010        14    0.70 %      0.0589
"""


def test_plain_text():
    file = io.StringIO()
    assert example_mask().summary(file) is None
    assert file.getvalue() == PLAIN


def test_standard_output(capsys):
    example_mask().summary()
    assert capsys.readouterr().out == PLAIN


def test_empty_variables():
    file = io.StringIO()
    SparseMask({"a/kernel": []}, {"a/kernel": (0, 3)}).summary(file)
    assert file.getvalue().splitlines()[1].split() == ["a", "0", "0", "-", "-"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    file = Terminal()
    example_mask().summary(file)
    text = file.getvalue()
    assert "│" in text
    for cell in ("encoder/layer_0", "66.67 %", "head (always)", "2,010", "0.0589"):
        assert cell in text


def test_a_terminal_shows_paths_as_they_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = Terminal()
    SparseMask({"[red]a/kernel": []}, {"[red]a/kernel": (3,)}).summary(file)
    assert "[red]a" in file.getvalue()
