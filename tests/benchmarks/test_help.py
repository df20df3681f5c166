"""Every benchmark says what it takes."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = sorted(
    path.stem
    for path in FOLDER.iterdir()
    if path.suffix == ".py" or (path / "__main__.py").is_file()
)


@pytest.mark.parametrize("name", NAMES)
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    # Not one that another test imported already.
    for module in [m for m in sys.modules if m.startswith(f"benchmarks.{name}")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out
