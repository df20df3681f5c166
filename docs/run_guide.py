"""Run the guide, and write what it prints into the page, the notebook and the README.

    KERAS_BACKEND=jax python docs/run_guide.py

`docs/guide.md` is the source. Each block of Python is a cell of the notebook
`examples/quickstart.ipynb`; the block of text after it is what it printed, and the
picture after it what it drew. A test compares the notebook with the page.
"""

import base64
import contextlib
import io
import json
import os
import re
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUIDE, NOTEBOOK = ROOT / "docs/guide.md", ROOT / "examples/quickstart.ipynb"
PART = re.compile(
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?"
    r"(?:\n!\[[^\]]*\]\((?P<picture>[^)]*)\)\n)?",
    re.DOTALL | re.M,
)
INSTALL = """\
# On Colab: "git+" and the address of the repository.
PROJECT = ".."
%pip install --quiet {PROJECT} keras-hub matplotlib scikit-learn
"""


def run(page):
    """Return the page with every output as it comes out now; pictures are written."""
    names = {"__name__": "guide"}

    def part(found):
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            exec(compile(found["code"], str(GUIDE), "exec"), names)
        text = f"```python\n{found['code']}```\n"
        if output := written.getvalue():
            lines = "\n".join(line.rstrip() for line in output.splitlines())
            text += f"\n```text\n{lines}\n```\n"
        if found["picture"]:
            picture = Path(found["picture"])
            (GUIDE.parent / picture).write_bytes(Path(picture.name).read_bytes())
            text += found[0][found[0].index("\n![") :]
        return text

    return PART.sub(part, page)


def notebook(page):
    """Return the page as a notebook, its outputs included."""
    cells, end = [_cell("code", INSTALL)], 0
    for found in PART.finditer(page):
        cells.append(_cell("markdown", _moved(page[end : found.start()])))
        outputs = []
        if found["output"]:
            text = found["output"].splitlines(keepends=True)
            outputs.append({"output_type": "stream", "name": "stdout", "text": text})
        if found["picture"]:
            picture = (GUIDE.parent / found["picture"]).read_bytes()
            data = {"image/png": base64.b64encode(picture).decode()}
            outputs.append(
                {"output_type": "display_data", "metadata": {}, "data": data}
            )
        cells.append(_cell("code", found["code"], outputs))
        end = found.end()
    cells.append(_cell("markdown", _moved(page[end:])))
    cells[0], cells[1] = cells[1], cells[0]  # the title first
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    metadata = {
        "colab": {"provenance": []},
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
    }
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells}


def _cell(kind, source, outputs=()):
    cell = {"cell_type": kind, "metadata": {}}
    cell["source"] = source.strip("\n").splitlines(keepends=True)
    if kind == "code":
        cell |= {"execution_count": None, "outputs": list(outputs)}
    return cell


def _moved(text):
    """Links of the page as the notebook's folder sees them."""
    text = re.sub(r"\]\((?!\.\./|https?:|#)", "](../docs/", text)
    return text.replace("](../examples/", "](")


def main():
    """Run the page in an empty folder and write the files."""
    warnings.simplefilter("ignore")
    page, here = GUIDE.read_text(encoding="utf-8"), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        page = run(page)
        os.chdir(here)
    GUIDE.write_text(page, encoding="utf-8")
    text = json.dumps(notebook(page), indent=1, ensure_ascii=False)
    NOTEBOOK.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
