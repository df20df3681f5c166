"""Means, ranks and paired differences of finished cells."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.quality import methods

DRAWS = 10_000  # of the bootstrap


def markdown(found: Mapping[Any, Mapping[str, Any]], head: str, tasks=None) -> str:
    """Return one table for each p."""
    cells = {
        cell: record
        for cell, record in found.items()
        if cell.head == head and (not tasks or cell.task in tasks)
    }
    fractions = sorted({c.fraction for c in cells if c.fraction is not None})
    return "\n\n".join(one_table(cells, fraction) for fraction in fractions)


def together(suites: Mapping[str, Mapping[Any, Mapping[str, Any]]], head: str) -> str:
    """Return the mean ranks of each suite and their mean, for methods that all have."""
    tables = []
    of_suites = [[c for c in found if c.head == head] for found in suites.values()]
    fractions = [{c.fraction for c in cells} - {None} for cells in of_suites]
    for fraction in sorted(set.intersection(*fractions)):
        values = {}
        for suite, found in suites.items():
            cells = {c: record for c, record in found.items() if c.head == head}
            values[suite] = values_of(cells, fraction)
        whole = {methods.FULL, methods.HEAD_ONLY}
        shared = set.intersection(*map(set, values.values())) - whole
        rank: dict[str, list[float]] = {method: [] for method in sorted(shared)}
        columns = ["method"]
        for suite, rows in values.items():
            blocks = sorted(rows[methods.OURS])
            columns.append(f"{suite}, {len(blocks)} blocks")
            of_suite = ranks(
                {m: np.array([primary(rows[m][b]) for b in blocks]) for m in rank}
            )
            for method, value in of_suite.items():
                rank[method].append(value)
        columns.append("mean rank")
        lines = [f"p = {100 * fraction:g} %.", "", "| " + " | ".join(columns) + " |"]
        lines.append("| " + " | ".join("---" for _ in columns) + " |")
        for method, found_ranks in sorted(rank.items(), key=lambda row: sum(row[1])):
            row = [*found_ranks, float(np.mean(found_ranks))]
            lines.append(f"| {method} | " + " | ".join(f"{v:.2f}" for v in row) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def values_of(cells, fraction) -> dict[str, dict[tuple[str, int], Mapping[str, Any]]]:
    """Return {method: {(task, seed): record}} at one p."""
    found: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for cell, record in cells.items():
        if cell.fraction in (fraction, None):
            found.setdefault(cell.method, {})[cell.task, cell.seed] = record
    # Only blocks that all have count, and a method that has just begun stays out.
    ours = set(found.get(methods.OURS, {}))
    found = {
        m: rows for m, rows in found.items() if 2 * len(ours & set(rows)) > len(ours)
    }
    shared = set.intersection(*map(set, found.values())) if ours else set()
    return {m: {block: rows[block] for block in shared} for m, rows in found.items()}


def primary(record: Mapping[str, Any]) -> float:
    """Return the metric that ranks, in percent."""
    return 100 * next(iter(record["test"].values()))


def ranks(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean rank over blocks, 1 the best; equal values share their rank."""
    table = np.stack(list(values.values()))
    better = (table[None] > table[:, None]).sum(1)
    equal = (table[None] == table[:, None]).sum(1)
    mean = (better + (equal + 1) / 2).mean(1)
    return dict(zip(values, mean.tolist(), strict=True))


def interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, by the bootstrap over blocks."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(differences), (DRAWS, len(differences)))
    low, high = np.percentile(differences[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def one_table(cells, fraction: float) -> str:
    """Return the table at one p, best mean rank of the sparse methods first."""
    rows = values_of(cells, fraction)
    if not rows.get(methods.OURS):
        return f"p = {100 * fraction:g} %: no block that all methods have."
    blocks = sorted(rows[methods.OURS])
    values = {
        method: np.array([primary(records[block]) for block in blocks])
        for method, records in rows.items()
    }
    whole = methods.FULL, methods.HEAD_ONLY
    rank = ranks({m: v for m, v in values.items() if m not in whole})
    names = [str(task) for task in dict.fromkeys(task for task, _ in blocks)]
    seeds = len({seed for _, seed in blocks})
    columns = ["method", *names, "mean", "rank", f"{methods.OURS} minus it", "scalars"]
    columns += ["NLL", "ECE", "Brier", "seconds", "peak MB", "bytes"]
    lines = [
        f"p = {100 * fraction:g} %: {len(blocks)} blocks, {seeds} seeds.",
        "",
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join("---" for _ in columns) + " |",
    ]
    order = sorted(values, key=lambda method: rank.get(method, 99))
    for method in order:
        records = [rows[method][block] for block in blocks]
        line = [method]
        for name in names:
            of_task = np.array([task == name for task, _ in blocks])
            line.append(mean_and_error(values[method][of_task]))
        line.append(f"{values[method].mean():.2f}")
        line.append(f"{rank[method]:.2f}" if method in rank else "-")
        if method == methods.OURS or len(blocks) < 2:
            line.append("-")
        else:
            differences = values[methods.OURS] - values[method]
            low, high = interval(differences)
            line.append(f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
        line.append(mean(records, "trained scalars"))
        for metric in ("NLL", "ECE", "Brier"):
            found = [r["test"][metric] for r in records if metric in r["test"]]
            line.append(f"{np.mean(found):.3f}" if found else "-")
        seconds = np.mean([sum(r["seconds"].values()) for r in records])
        line += [f"{seconds:.1f}", mean(records, "peak megabytes")]
        line.append(mean(records, "stored bytes"))
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def mean(records, name: str) -> str:
    """Return the mean of a figure, "-" where a suite does not measure it."""
    if not all(name in record for record in records):
        return "-"
    return f"{np.mean([record[name] for record in records]):,.0f}"


def mean_and_error(values: np.ndarray) -> str:
    """Return "mean ± standard error"."""
    if len(values) < 2:
        return f"{values.mean():.2f}"
    return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"
