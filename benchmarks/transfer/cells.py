"""Cells of one task: masks, runs at each rate, the best rate; all kept as they come."""

import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np

from benchmarks.quality.cells import Cell, Results
from benchmarks.quality.evaluation import figures
from benchmarks.quality.methods import HEAD, SELECTED
from benchmarks.transfer.network import Network, orders, schedule
from benchmarks.transfer.programs import Run, Selected
from benchmarks.transfer.rules import (
    FULL,
    HEAD_ONLY,
    LORA,
    NO_FRACTION,
    RULES,
    mask_of,
)
from benchmarks.transfer.sources import Found, Settings
from benchmarks.transfer.tasks import Task
from keras_bayestune.files import replacing

LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FIRST_RATES = (1e-3, 3e-3, 1e-2)
FIRST_FULL_RATES = (3e-5, 1e-4, 3e-4)


def cells_of(
    task: str, methods: Iterable[str], fractions: Sequence[float], seeds: Iterable[int]
) -> list[Cell]:
    """Return the cells of one task, seed by seed."""
    cells = [
        Cell(task, method, None if method in NO_FRACTION else p, "always", seed)
        for seed in seeds
        for p in fractions
        for method in methods
    ]
    return list(dict.fromkeys(cells))


@dataclasses.dataclass
class Plan:
    """What a cell trains: scalars of a network from values on, for so many steps."""

    network: Network
    indices: np.ndarray  # int32, ascending, in `network.flat`
    start: np.ndarray  # float32
    selection_steps: int
    selection_seconds: float


class Runner:
    """Runs the cells of one task.

    Args:
        task: The task.
        settings: The budget.
        folder: Where masks and runs are kept.
    """

    def __init__(self, task: Task, settings: Settings, folder: Path):
        self.task, self.settings, self.folder = task, settings, folder
        self._lora: dict[int, Network] = {}
        self._programs: dict[tuple[int, int], Selected] = {}

    def run(self, cells: Sequence[Cell], results: Results) -> None:
        """Run what is not finished yet."""
        finished = results.read()
        cells = [cell for cell in cells if cell not in finished]
        self._select(cells)
        plans = {cell: self._plan(cell) for cell in cells}
        groups: dict[Any, list[Cell]] = {}
        for cell, plan in plans.items():
            if plan is not None:
                key = id(plan.network), len(plan.indices), plan.selection_steps
                groups.setdefault(key, []).append(cell)
        for members in groups.values():
            self._train({cell: plans[cell] for cell in members}, results)

    def _select(self, cells: Sequence[Cell]) -> None:
        """Make the masks that are missing, one source of scores after another."""
        missing = [
            c
            for c in cells
            if RULES[c.method].source is not None and not self._mask(c).exists()
        ]
        sources = {RULES[c.method].source: None for c in missing}
        for source in sources:
            of_source = [c for c in missing if RULES[c.method].source is source]
            seeds = sorted({c.seed for c in of_source})
            # So many at once that their scores fit the memory.
            for first in range(0, len(seeds), self.settings.together):
                some = seeds[first : first + self.settings.together]
                found = source(self.task, self.settings, some)
                for cell in of_source:
                    if cell.seed in some:
                        of_seeds = found[RULES[cell.method].scores]
                        self._save_mask(cell, of_seeds[some.index(cell.seed)])

    def _save_mask(self, cell: Cell, found: Found) -> None:
        network, rule = self.task.network, RULES[cell.method]
        variables = network.model.trainable_variables
        head = {v.path: tuple(v.shape) for v in variables[-2:]}
        mask = mask_of(rule, found.scores, cell.fraction, head)
        ends = np.cumsum([0, *network.sizes])
        indices = np.concatenate(
            [
                mask.indices.get(v.path, np.zeros(0, int)) + offset
                for v, offset in zip(variables, ends, strict=False)
            ]
        ).astype("int32")
        weights = self.task.start(cell.seed)
        if SELECTED in rule.kept:
            weights = [*found.weights[:-2], *weights[-2:]]
        if HEAD in rule.kept:
            weights = [*weights[:-2], *found.weights[-2:]]
        start = network.flat(weights)[indices]
        file = self._mask(cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npz")
        np.savez(
            part, indices=indices, start=start, steps=found.steps, seconds=found.seconds
        )
        part.replace(file)

    def _mask(self, cell: Cell) -> Path:
        return self.folder / "masks" / f"{cell.file_name.removesuffix('.json')}.npz"

    def _plan(self, cell: Cell) -> Plan | None:
        task, network = self.task, self.task.network
        if RULES[cell.method].source is not None:
            with np.load(self._mask(cell)) as file:
                return Plan(
                    network,
                    file["indices"],
                    file["start"],
                    int(file["steps"]),
                    float(file["seconds"]),
                )
        head = task.head_start(cell.seed)
        if cell.method == LORA:
            rank = task.lora_rank(int(cell.fraction * (network.count - len(head))))
            if rank is None:
                return None
            if rank not in self._lora:
                keras.utils.set_random_seed(0)  # where the factors start
                self._lora[rank] = task.new_network(rank)
            network = self._lora[rank]
        first = network.count - len(head) if cell.method == HEAD_ONLY else 0
        indices = np.arange(first, network.count, dtype="int32")
        start = network.flat([*network.weights()[:-2], head])[indices]
        return Plan(network, indices, start, 0, 0.0)

    def _train(self, plans: Mapping[Cell, Plan], results: Results) -> None:
        """Train cells of one shape, in rounds, until the best rate lies inside."""
        task, settings = self.task, self.settings
        one = next(iter(plans.values()))
        shape = id(one.network), len(one.indices)
        if shape not in self._programs:
            self._programs[shape] = Selected(
                one.network, len(one.indices), task.train, settings.together
            )
        program = self._programs[shape]
        steps = settings.steps - one.selection_steps
        while True:
            tried = {cell: self._tried(cell) for cell in plans}
            due = [(c, r) for c in plans for r in next_rates(c, tried[c])]
            for cell in plans:
                if not next_rates(cell, tried[cell]):
                    results.write(cell, self._record(plans[cell], steps, tried[cell]))
            plans = {cell: plans[cell] for cell in dict(due)}
            if not due:
                return
            runs = [
                Run(
                    orders(len(task.train[1]), settings.batch_size, steps, cell.seed),
                    schedule(rate, steps),
                    plans[cell].start,
                    plans[cell].indices,
                )
                for cell, rate in due
            ]
            held_out = task.validation, task.test
            ends = program.train(runs, [x for x, _ in held_out])
            for (cell, rate), (_, outputs, seconds) in zip(due, ends, strict=True):
                found = [
                    figures(task, logits, labels)
                    for logits, (_, labels) in zip(outputs, held_out, strict=True)
                ]
                validation, test = found
                self._write_run(
                    cell,
                    rate,
                    {"validation": validation, "test": test, "seconds": seconds},
                )
                metric, value = next(iter(validation.items()))
                print(
                    f"{seconds:6.1f} s  seed {cell.seed}  {cell.task}  {cell.method}  "
                    f"{cell.fraction}  rate {rate:g}  {metric} {value:.4f}",
                    flush=True,
                )

    def _write_run(self, cell: Cell, rate: float, record: Mapping[str, Any]) -> None:
        folder = self.folder / "runs" / cell.file_name.removesuffix(".json")
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{rate:g}.json") as temporary:
            temporary.write_text(json.dumps(record))

    def _tried(self, cell: Cell) -> dict[float, dict[str, Any]]:
        """Return {rate: record} of the runs so far."""
        folder = self.folder / "runs" / cell.file_name.removesuffix(".json")
        return {
            float(file.stem): json.loads(file.read_text())
            for file in folder.glob("*.json")
        }

    def _record(self, plan: Plan, steps: int, tried) -> dict[str, Any]:
        rate = best_rate(tried)
        return {
            "steps": {"selection": plan.selection_steps, "stage 2": steps},
            "batch size": self.settings.batch_size,
            "trained scalars": len(plan.indices),
            "rate": rate,
            "validation": {f"{r:g}": tried[r]["validation"] for r in sorted(tried)},
            "test": tried[rate]["test"],
            "seconds": {
                "selection": round(plan.selection_seconds, 2),
                "stage 2": round(sum(run["seconds"] for run in tried.values()), 2),
            },
            "backend": f"jax, {jax.devices()[0].device_kind}",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }


def value_of(record: Mapping[str, Any]) -> float:
    """Return the validation metric that ranks."""
    value = next(iter(record["validation"].values()))
    return value if math.isfinite(value) else -math.inf


def best_rate(tried: Mapping[float, Mapping[str, Any]]) -> float:
    """Return the rate with the best validation metric, the lowest of equal ones."""
    return max(sorted(tried), key=lambda rate: value_of(tried[rate]))


def next_rates(cell: Cell, tried: Mapping[float, Mapping[str, Any]]) -> list[float]:
    """Return the rates to try: the first ones, then beyond the best if it is the last.

    None once the best rate lies inside, or at an end of the ladder.
    """
    first = FIRST_FULL_RATES if cell.method == FULL else FIRST_RATES
    left = [rate for rate in first if rate not in tried]
    if left:
        return left
    rates, best = sorted(tried), best_rate(tried)
    place = LADDER.index(best)
    if best == rates[0] and place > 0:
        return [LADDER[place - 1]]
    if best == rates[-1] and place < len(LADDER) - 1:
        return [LADDER[place + 1]]
    return []
