"""Links lead somewhere, the code runs, and the API page agrees with the code."""

import importlib.util
import inspect
import json
import pathlib
import re
import types

import keras
import keras_hub
import pytest

import keras_bayestune

ROOT = pathlib.Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^()\s]+)\)")
CODE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)$|`[^`\n]*`", re.DOTALL | re.M)
HEADING = re.compile(r"^#+ +(?P<title>.+?) *$", re.M)


def _anchors(text):
    """What `#...` may name: the headings, written as GitHub writes them."""
    titles = HEADING.findall(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.M))
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
    }


def broken_links(path):
    """The relative links of one document that lead nowhere."""
    text = path.read_text(encoding="utf-8")
    found = []
    for target in LINK.findall(CODE.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue  # another site: no test here needs a network
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        if not page.exists() or (
            anchor and anchor not in _anchors(page.read_text(encoding="utf-8"))
        ):
            found.append(target)
    return found


def test_links_lead_somewhere(root):
    folders = (".", ".github", "docs", "examples", "tests/fixtures/authors")
    pages = [page for folder in folders for page in (root / folder).rglob("*.md")]
    pages = [page for page in pages if ".tox" not in page.parts]
    assert pages
    broken = {page.name: broken_links(page) for page in pages}
    assert not {page: links for page, links in broken.items() if links}


@pytest.mark.parametrize(
    "target", ["gone.md", "#gone", "page.md#gone", "other.md#Here-we-are", "a/page.md"]
)
def test_a_broken_link_is_found(tmp_path, target):
    (tmp_path / "other.md").write_text("# Here, we are `now`\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n[x]({target}) `[x](in-code)`\n")
    assert broken_links(page) == [target]


@pytest.mark.parametrize(
    "target", ["#title", "other.md", "other.md#here-we-are-now", "https://keras.io"]
)
def test_a_good_link_passes(tmp_path, target):
    (tmp_path / "other.md").write_text("```\n# no\n```\n## Here, we are `now`\n")
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n```\n[x](in-code)\n```\n[x]({target})\n")
    assert broken_links(page) == []


BLOCK = re.compile(
    r"^```python *(?P<backend>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.M
)
PAGES = [  # all of their code runs, in order within a page
    page.relative_to(ROOT).as_posix()
    for folder in (".", ".github", "docs", "examples")
    for page in sorted((ROOT / folder).glob("*.md"))
    if "```python" in page.read_text(encoding="utf-8")
]
EVERYWHERE = {"docs/quick-start.md"}  # on every backend, not on JAX alone


def test_code_is_found():
    assert {"README.md", "docs/delta-format.md", "docs/recipes.md"} <= set(PAGES)


@pytest.fixture
def tiny_preset(tmp_path, monkeypatch):
    """Stands for the download of `from_preset`: a preset folder of a tiny BERT."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "dull", "film"]
    models = keras_hub.models
    folder = tmp_path / "preset"
    models.BertTextClassifier(
        models.BertBackbone(
            vocabulary_size=len(words),
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            intermediate_dim=32,
            max_sequence_length=8,
        ),
        num_classes=2,
        preprocessor=models.BertTextClassifierPreprocessor(
            models.BertTokenizer(words), sequence_length=8
        ),
    ).save_to_preset(str(folder))
    load = models.TextClassifier.from_preset
    monkeypatch.setattr(
        models.TextClassifier,
        "from_preset",
        lambda name, **arguments: load(str(folder), **arguments),
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, root, tiny_preset, tmp_path, monkeypatch):
    """On JAX; elsewhere the first page, and pages with a block for the backend."""
    text = (root / page).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == len(re.findall(r"^ *```python", text, re.M))
    backend = keras.config.backend()
    known = {"jax", *(block["backend"] for block in blocks)}
    if backend not in known and page not in EVERYWHERE:
        pytest.skip(f"{page} has no code for {backend} alone")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page}
    for block in blocks:
        if block["backend"] in ("", backend):
            line = block.string[: block.start("code")].count("\n")
            code = "\n" * line + block["code"]  # a traceback then names the page's line
            exec(compile(code, root / page, "exec"), names)


def test_the_notebook_is_the_guide(root):
    """Its cells are the page's blocks, which run above, with the page's outputs."""
    path = root / "docs" / "run_guide.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    run_guide = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(run_guide)
    page = run_guide.GUIDE.read_text(encoding="utf-8")
    written = json.loads(run_guide.NOTEBOOK.read_text(encoding="utf-8"))
    assert written == run_guide.notebook(page), "Run `python docs/run_guide.py`."
    cells = ["".join(cell["source"]) for cell in written["cells"]]
    code = [block["code"].strip("\n") for block in BLOCK.finditer(page)]
    assert code and [cell for cell in cells if cell in code] == code


def test_the_site_has_every_page(root):
    navigation = (root / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w-]+\.md$", navigation, re.M))
    assert listed == {page.name for page in (root / "docs").glob("*.md")}


SIGNATURE = re.compile(
    r"^```text\n(?P<text>(?P<name>\w+)\(.*?\))\n```$", re.DOTALL | re.M
)


def _signature(name, value):
    function = value.__init__ if inspect.isclass(value) else value
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=parameter.empty)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    bare = signature.replace(parameters=parameters, return_annotation=signature.empty)
    return f"{name}{bare}"


def test_the_api_page_lists_every_public_name(root):
    page = (root / "docs" / "api.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^## `(\w+)`$", page, re.M))
    written = {
        found["name"]: re.sub(r"\s", "", found["text"])
        for found in SIGNATURE.finditer(page)
    }
    for name in keras_bayestune.__all__:
        value = getattr(keras_bayestune, name)
        if isinstance(value, types.ModuleType):
            missing = [n for n in value.__all__ if not re.search(rf"`{n}\b", page)]
            assert name in headings and not missing, (name, missing)
        elif callable(value):
            assert name in headings, f"docs/api.md has no section `{name}`"
            assert written.get(name) == re.sub(r"\s", "", _signature(name, value))
        else:
            assert f"keras_bayestune.{name}" in page
