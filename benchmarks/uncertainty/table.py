"""Tables of the results: means over blocks, and how often a method is ahead."""

import collections

import numpy as np

POINT, RIVAL = "point", "point, calibrated"
MEASURES = ("accuracy", "NLL", "ECE", "Brier", "right or wrong")
HEAD = (
    "method",
    *MEASURES,
    "in or out",
    "NLL under shift",
    "ECE under shift",
    "NLL below point",
    "NLL below its calibration",
    "bytes",
    "passes",
)


def markdown(records):
    """Return one line for each method, best NLL first."""
    by_method = collections.defaultdict(dict)
    for record in records:
        block = tuple(record["block"].values())
        by_method[record["method"]][block] = record
    blocks = set.intersection(*(set(rows) for rows in by_method.values()))
    rows = [
        (method, [found[block] for block in sorted(blocks)])
        for method, found in by_method.items()
    ]
    rows.sort(key=lambda row: np.mean([r["test"]["NLL"] for r in row[1]]))
    lines = [
        f"{len(blocks)} blocks.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{' --- |' * len(HEAD)}",
    ]
    chosen = dict(rows)
    for method, found in rows:
        means = [
            np.mean([r["test"].get(name, np.nan) for r in found]) for name in MEASURES
        ]
        shifted = [s for r in found for s in r["shift"].values()]
        cells = [
            method,
            f"{100 * means[0]:.2f}",
            *(f"{mean:.4f}" for mean in means[1:]),
            f"{np.mean([r['in or out'] for r in found]):.4f}",
            f"{np.mean([s['NLL'] for s in shifted]):.4f}",
            f"{np.mean([s['ECE'] for s in shifted]):.4f}",
            _ahead(found, chosen.get(POINT)),
            _ahead(found, chosen.get(RIVAL)),
            f"{np.mean([r['bytes'] for r in found]):,.0f}",
            f"{found[0]['passes']}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_and_error(values):
    """Return a mean with its sign, and its standard error over blocks."""
    values = np.asarray(values)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{values.mean():+.3g} +- {error:.2g}"


def _ahead(found, others):
    """In how many blocks the NLL is lower."""
    if others is None or found is others:
        return "-"
    pairs = zip(found, others, strict=True)
    count = sum(one["test"]["NLL"] < other["test"]["NLL"] for one, other in pairs)
    return f"{count} of {len(found)}"
