"""Files that stand beside the code agree with it."""

import re
import tomllib

import pytest

import keras_bayestune


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_citation_names_this_version(root):
    text = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", text, re.M)[1] == keras_bayestune.__version__


def test_pre_commit_runs_the_same_linter(root, project):
    text = (root / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    extras = project["project"]["optional-dependencies"]
    (pinned,) = [name for name in extras["dev"] if name.startswith("ruff")]
    assert set(re.findall(r"\"(ruff[^\"]*)\"", text)) == {pinned}


def test_ci_runs_environments_that_exist(root):
    tox = (root / "tox.ini").read_text(encoding="utf-8")
    sections = re.findall(r"^\[testenv:\{?([\w,]+)\}?\]", tox, re.M)
    known = {name for section in sections for name in section.split(",")}
    text = (root / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    listed = re.search(r"environment: \[(.+)\]", text)[1]
    named = re.findall(r"\w+", listed) + re.findall(r"tox run -e (\w+)", text)
    assert set(named) <= known
    assert {"lint", "types", "tensorflow", "jax", "torch", "package"} <= set(named)


def test_no_message_advises_an_install_from_an_index(root):
    """The package is on no index yet; once it is, this test goes."""
    advice = re.compile(r"pip install [\"`']?keras[-_]bayestune")
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md")]
    files = [*(root / "keras_bayestune").rglob("*.py"), *(root / "examples").glob("*")]
    found = [
        file.name
        for file in [*pages, *files]
        if file.is_file() and advice.search(file.read_text(encoding="utf-8"))
    ]
    assert not found
