import pytest

from keras_bayestune.__main__ import main
from keras_bayestune.uncertainty import DeltaPosterior
from tests.contracts.test_files import new_delta, new_mask


def test_a_mask(tmp_path, capsys):
    mask = new_mask()
    mask.save(tmp_path / "mask")
    assert main(["inspect", str(tmp_path / "mask")]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    size = (tmp_path / "mask").stat().st_size
    assert first == f"mask: {mask!r}, {size:,} bytes"
    assert rest[0].split() == [
        "layer",
        "scalars",
        "selected",
        "fraction",
        "mean",
        "score",
    ]
    assert [row.split()[0] for row in rest[1:4]] == ["body", "head", "total"]


def test_a_delta_and_a_posterior(tmp_path, capsys):
    delta = new_delta()
    delta.save(tmp_path / "delta")
    DeltaPosterior([delta, delta], metadata={"task": "x"}).save(tmp_path / "two")
    assert main(["inspect", str(tmp_path / "delta"), str(tmp_path / "two")]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"delta: {delta!r}, ")
    assert "values: float32\nmetadata: {\n" in text
    assert '"kept_squared_difference": 1.0' in text
    posterior = text[text.index("two: <DeltaPosterior of 2 deltas without") :]
    assert posterior.count(repr(delta)) == 2
    assert posterior.endswith('metadata: {\n "task": "x"\n}\n')


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(tmp_path, capsys):
    names = "mask", "short", "text", "damaged", "gone"
    mask, short, text, damaged, gone = (str(tmp_path / name) for name in names)
    new_mask().save(mask)
    with open(mask, "rb") as file:
        content = file.read()
    for path, data in (
        (short, b"abc"),
        (text, b"\2\0\0\0\0\0\0\0[]"),
        (damaged, content[:-1]),
    ):
        with open(path, "wb") as file:
            file.write(data)
    assert main(["inspect", short, text, damaged, gone, mask]) == 1
    said = capsys.readouterr()
    errors = said.err.splitlines()
    assert [error.split(" is ")[0] for error in errors[:3]] == [
        repr(short),
        repr(text),
        repr(damaged),
    ]
    assert "its format is None. Pass a file that SparseMask.save," in errors[0]
    assert gone in errors[3]
    assert said.out.startswith("mask: SparseMask(")


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "inspect" in capsys.readouterr().err
