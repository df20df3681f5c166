"""The mask as a table, layer by layer."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from keras_bayestune.paths import layer_of

if TYPE_CHECKING:
    from keras_bayestune.masks.sparse_mask import SparseMask

Row = tuple[str, ...]

_HEADER = ("layer", "scalars", "selected", "fraction", "mean score")


def print_summary(mask: "SparseMask", file: TextIO) -> None:
    """Print one row per layer and a total: with rich on a terminal, else as text."""
    layers: dict[str, list[str]] = {}
    for path in mask.shapes:
        layers.setdefault(layer_of(path), []).append(path)
    rows = []
    for layer, paths in layers.items():
        whole = all(path in mask.always for path in paths)
        rows.append(_row(mask, layer + " (always)" * whole, paths))
    total = _row(mask, "total", mask.shapes)
    if file.isatty():
        _print_rich(rows, total, file)
    else:
        _print_plain([_HEADER, *rows, total], file)


def _row(mask: "SparseMask", name: str, paths: Iterable[str]) -> Row:
    sizes = {path: math.prod(mask.shapes[path]) for path in paths}
    size = sum(sizes.values())
    selected = sum(len(mask.indices[path]) for path in sizes)
    scored = {
        path: mask.mean_scores[path] for path in sizes if path in mask.mean_scores
    }
    weight = sum(sizes[path] for path in scored)
    return (
        name,
        f"{size:,}",
        f"{selected:,}",
        f"{100 * selected / size:.2f} %" if size else "-",
        f"{sum(sizes[p] * scored[p] for p in scored) / weight:.3g}" if weight else "-",
    )


def _print_plain(rows: list[Row], file: TextIO) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers in rows:
        cells = [name.ljust(widths[0])]
        cells += [n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)]
        print("  ".join(cells).rstrip(), file=file)


def _print_rich(rows: list[Row], total: Row, file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_footer=True)
    for index, (title, footer) in enumerate(zip(_HEADER, total, strict=True)):
        table.add_column(
            title,
            Text(footer),
            justify="right" if index else "left",
            overflow="fold",
            no_wrap=bool(index),
        )
    for row in rows:
        table.add_row(*map(Text, row))  # Text: a path may hold rich's [markup]
    Console(file=file).print(table)
