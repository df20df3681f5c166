"""What the site has beyond the pages of this folder: a hook of mkdocs.

A page here links to what lies elsewhere in the project, `../examples/quickstart.py`, as
GitHub shows it. On the site such a link leads to a page under `source/` with the file's
text. Every public name gets a page under `api/`, which mkdocstrings fills from its
docstring. No link leaves the site but those that name another site.
"""

import ast
import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(?P<target>[^()\s]+)(\))")
NAME = re.compile(r"^## `(\w+)`$", re.M)  # a heading of api.md
BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
API_LINK = r"\g<0>\n\n[Arguments, errors, example](api/\1.md)"


def on_config(config):
    """Add the API's pages to the navigation."""
    (section,) = (entry for entry in config.nav if "API" in entry)
    section["API"] += [{name: f"api/{name}.md"} for name in _names()]


def on_files(files, config):
    """Add the API's pages, and those of the files that pages link to."""
    for name in _names():
        text = f"::: keras_bayestune.{name}\n    options: {{heading_level: 1}}\n"
        if (ROOT / "keras_bayestune" / name / "__init__.py").exists():
            members = [f"::: keras_bayestune.{name}.{member}" for member in _all(name)]
            text = "\n\n".join([f"# `{name}`", *members])
        _add(files, config, f"api/{name}.md", text)

    waiting = [ROOT / "docs" / page.src_path for page in files.documentation_pages()]
    waiting = [page for page in waiting if page.exists()]
    seen = set()
    while waiting:
        page = waiting.pop()
        for target in _elsewhere(page):
            if target in seen:
                continue
            seen.add(target)
            beside = InclusionLevel.NOT_IN_NAV
            _add(files, config, _page_of(target), _shown(target), beside)
            if target.suffix == ".md":
                waiting.append(target)


def on_page_markdown(markdown, page, config, files):
    """Turn links that leave `docs/` into links of the site."""
    source = page.file.src_path
    if source.startswith(("api/", "source/")):
        return markdown
    if source == "api.md":
        markdown = NAME.sub(API_LINK, markdown)
    for name, title in BACKENDS.items():
        titled = f'```python title="{title}"\n'
        markdown = markdown.replace(f"```python {name}\n", titled)
    return _localised(markdown, ROOT / "docs" / source, source)


def _names():
    """The public names: api.md has a heading for each, as a test checks."""
    return NAME.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8"))


def _all(package):
    """The public names of a package, without importing it."""
    tree = ast.parse((ROOT / "keras_bayestune" / package / "__init__.py").read_text())
    return next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )


def _add(files, config, path, content, inclusion=InclusionLevel.INCLUDED):
    files.append(File.generated(config, path, content=content, inclusion=inclusion))


def _elsewhere(page):
    """What a page links to in the project but outside `docs/`."""
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        target = _file_of(page, found["target"])
        if target and not _is_page(target):
            yield target


def _file_of(page, link):
    """The file or folder that a relative link of a page names."""
    name = link.partition("#")[0]
    if not name or re.match(r"[a-z]+:", link):
        return None
    target = Path(os.path.normpath(page.parent / name))
    return target if target.exists() and target.is_relative_to(ROOT) else None


def _is_page(target):
    return target.is_relative_to(ROOT / "docs") and target.is_file()


def _page_of(target):
    """Where the site has a file or a folder of the project."""
    if _is_page(target):
        return target.relative_to(ROOT / "docs").as_posix()
    name = target.relative_to(ROOT).as_posix()
    return f"source/{name}" if target.suffix == ".md" else f"source/{name}.md"


def _shown(target):
    """The page of a file: a document as it is, code as code, a folder as a list."""
    name = target.relative_to(ROOT).as_posix()
    hidden = "---\nsearch: {exclude: true}\n---\n"
    if target.is_dir():
        inside = sorted(file.name for file in target.iterdir())
        rows = "".join(f"- `{file}`\n" for file in inside if file[0] not in "_.")
        return f"{hidden}# `{name}`\n\n{rows}"
    text = target.read_text(encoding="utf-8")
    if target.suffix == ".md":
        return hidden + _localised(text, target, _page_of(target))
    language = {".py": "python", ".ipynb": "json"}.get(target.suffix, "text")
    return f"{hidden}# `{name}`\n\n~~~~~~{language}\n{text}\n~~~~~~\n"


def _localised(text, page, source):
    """The text of a page with its links as the site has them."""

    def link(found):
        target = _file_of(page, found["target"])
        if target is None:
            return found[0]
        anchor = found["target"].partition("#")[1:]
        path = posixpath.relpath(_page_of(target), posixpath.dirname(source) or ".")
        return found[1] + path + "".join(anchor) + found[3]

    return LINK.sub(link, text)
