"""Cells: what one result belongs to, how it is made, where it is kept."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import load_file, save_file

import keras_bayestune as kbt
from benchmarks.quality import methods
from benchmarks.quality.evaluation import batches, evaluate
from benchmarks.quality.memory import peak_megabytes, reset_peak
from benchmarks.quality.stage2 import Stage2
from benchmarks.quality.suite import Problem, Suite
from keras_bayestune.callbacks.stage_two_start import (
    LastWeights,
    give_to_selected,
    selected_values,
)
from keras_bayestune.files import replacing


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one result belongs to."""

    task: str
    method: str
    fraction: float | None  # None: the method has a size of its own
    head: str  # "always" or "competes"
    seed: int

    @property
    def file_name(self) -> str:
        """A name from the fields, told apart by a hash whatever they hold."""
        fields = dataclasses.astuple(self)
        plain = re.sub(r"[^\w.]+", "-", "-".join(map(str, fields)))
        return f"{plain}-{hashlib.sha256(repr(fields).encode()).hexdigest()[:6]}.json"


class Results:
    """Finished cells of one suite and budget: single files, and collected lines."""

    def __init__(self, label: str, folder: Path, collected: Path):
        self.folder = folder / label
        self.file = collected / f"{label}.jsonl"

    def read(self) -> dict[Cell, dict[str, Any]]:
        """Return all of them; a single file goes before a collected line."""
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        lines += [file.read_text() for file in sorted(self.folder.glob("*.json"))]
        found = {}
        for line in lines:
            record = json.loads(line)
            found[Cell(**record["cell"])] = record
        return found

    def write(self, cell: Cell, record: dict[str, Any]) -> None:
        """Keep one, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"cell": dataclasses.asdict(cell), **record})
        with replacing(self.folder / cell.file_name) as temporary:
            temporary.write_text(f"{text}\n")

    def collect(self) -> int:
        """Put all in one file; return their number."""
        found = self.read()
        lines = sorted(json.dumps(record) for record in found.values())
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))
        return len(lines)


class Masks:
    """Masks of every rule and p: a selection is not repeated, not even after a kill."""

    def __init__(self, suite: Suite, folder: Path):
        self.suite, self.folder = suite, folder / suite.label() / "masks"

    def get(self, cell: Cell, problem: Problem) -> tuple[kbt.SparseMask, float]:
        """Return the mask and the seconds that its selection took."""
        place = self._place(cell, cell.method)
        if not (place / "seconds.json").exists():
            self._select(cell, problem)
        seconds = json.loads((place / "seconds.json").read_text())
        return kbt.SparseMask.load(place / self._name(cell.fraction)), seconds

    def start(self, cell: Cell, model: keras.Model, mask: kbt.SparseMask) -> None:
        """Give the scalars their last values that the method starts from."""
        _, kept = methods.form(cell.method)
        if kept:
            values = self._place(cell, cell.method) / f"{cell.fraction}.values"
            give_to_selected(model, mask, load_file(values))

    def _place(self, cell: Cell, method: str) -> Path:
        key = dataclasses.replace(cell, method=method, fraction=None)
        return self.folder / key.file_name.removesuffix(".json")

    def _name(self, fraction: float | None) -> str:
        return f"{fraction}.safetensors"

    def _select(self, cell: Cell, problem: Problem) -> None:
        start = time.perf_counter()
        select = methods.SELECTIONS[cell.method]
        problem.model.set_weights(problem.weights)
        last = LastWeights()
        watched = dataclasses.replace(problem, callbacks=(last,))
        found = select(self.suite, watched, cell.seed)
        seconds = time.perf_counter() - start
        for method, scores in found.items():
            place = self._place(cell, method)
            place.mkdir(parents=True, exist_ok=True)
            head = {
                v.path: tuple(v.shape)
                for v in problem.model.trainable_variables
                if v.path not in scores
            }
            if method == methods.BITFIT:
                mask = kbt.SparseMask.from_scores(scores, threshold=0.5, always=head)
                mask.save(place / self._name(None))
            else:
                budget, kept = methods.form(method)
                for p in self.suite.fractions:
                    mask = kbt.SparseMask.from_scores(
                        scores, p, budget=budget, always=head
                    )
                    mask.save(place / self._name(p))
                    if kept:
                        values = selected_values(problem.model, mask, last.values)
                        if methods.HEAD not in kept:
                            values = {q: v for q, v in values.items() if q not in head}
                        if methods.SELECTED not in kept:
                            values = {q: v for q, v in values.items() if q in head}
                        save_file(values, place / f"{p}.values")
            with replacing(place / "seconds.json") as temporary:
                temporary.write_text(f"{seconds:.2f}")


def run_cell(suite: Suite, cell: Cell, masks: Masks) -> dict[str, Any] | None:
    """Return the result of one cell; `None` if there is no such method here."""
    reset_peak()
    problem = suite.problem(cell.task, cell.seed, cell.head)
    keras.utils.set_random_seed(cell.seed)
    model, mask, seconds = problem.model, None, 0.0
    model.set_weights(problem.weights)
    trained: list[keras.Variable] = model.trainable_variables
    if cell.method == methods.LORA:
        competing = sum(int(np.prod(v.shape)) for v in _competing(problem))
        lora = suite.with_lora(problem, int(cell.fraction * competing))
        if lora is None:
            return None
        model = lora
        trained = model.trainable_variables
    elif cell.method == methods.HEAD_ONLY:
        if not problem.head:
            return None
        kept = {v.path for v in _competing(problem)}
        trained = [v for v in trained if v.path not in kept]
    elif cell.method != methods.FULL:
        mask, seconds = masks.get(cell, problem)
        model.set_weights(problem.weights)
        masks.start(cell, model, mask)

    steps = suite.budget - methods.selection_steps(cell.method, suite, problem)
    rates = suite.full_rates if cell.method == methods.FULL else suite.rates
    with _only_trainable(model, trained, unless=suite.compiles_once) as whole:
        stage2 = Stage2(
            model,
            whole if mask is None else mask,
            problem.loss,
            suite.compiles_once and model is problem.model,
        )
        record = _tune(suite, problem, stage2, steps, rates, cell.seed)
    if mask is None:
        count = sum(int(np.prod(v.shape)) for v in trained)
        stored = 4 * count
    else:
        count = sum(len(indices) for indices in mask.indices.values())
        stored = _delta_bytes(model, mask, problem)
    return {
        "steps": {"selection": suite.budget - steps, "stage 2": steps},
        "trained scalars": count,
        "stored bytes": stored,
        **record,
        "seconds": {"selection": seconds, "stage 2": record["seconds"]},
        "peak megabytes": peak_megabytes(),
        "backend": keras.backend.backend(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _tune(suite, problem, stage2, steps, rates, seed) -> dict[str, Any]:
    """Train at each rate that is worth it; evaluate the best on the test set."""
    validation, seconds, best, weights = {}, [], -np.inf, None

    def value(rate):
        nonlocal best, weights
        start = time.perf_counter()
        stage2.train(batches(problem.train, suite.batch_size, seed), steps, rate)
        seconds.append(time.perf_counter() - start)
        found = evaluate(problem, stage2.model, problem.validation)
        validation[str(rate)] = found
        ranks = next(iter(found.values()))
        ranks = ranks if np.isfinite(ranks) else -np.inf
        if weights is None or ranks > best:
            best, weights = ranks, stage2.model.get_weights()
        return ranks

    rate = best_rate(sorted(rates), value)
    stage2.model.set_weights(weights)
    return {
        "validation": validation,
        "rate": rate,
        "test": evaluate(problem, stage2.model, problem.test),
        "seconds": round(min(seconds), 2),  # without compilation, if there are two
    }


def best_rate(rates: Sequence[float], value: Callable[[float], float]) -> float:
    """Return the best of a grid, walking from its middle uphill.

    It ends at a rate that is better than both neighbours: of three rates all are
    tried, of five mostly three or four.
    """
    values: dict[int, float] = {}
    best = len(rates) // 2
    while True:
        near = {i for i in (best - 1, best, best + 1) if 0 <= i < len(rates)}
        if near <= set(values):
            return rates[best]
        for i in sorted(near - set(values)):
            values[i] = value(rates[i])
        best = max(values, key=values.__getitem__)


def _competing(problem: Problem) -> list[keras.Variable]:
    return [
        v
        for v in problem.model.trainable_variables
        if not any(re.search(pattern, v.path) for pattern in problem.head)
    ]


@contextlib.contextmanager
def _only_trainable(
    model: keras.Model, trained: list[keras.Variable], unless: bool
) -> Iterator[kbt.SparseMask | None]:
    """Freeze all else, or where the model is compiled for good return a mask."""
    paths = {v.path for v in trained}
    before = model.trainable_variables
    if len(paths) == len(before):
        yield None
    elif unless:
        shapes = {v.path: tuple(v.shape) for v in before}
        size = {path: int(np.prod(shape)) for path, shape in shapes.items()}
        indices = {p: np.arange(size[p] if p in paths else 0) for p in shapes}
        yield kbt.SparseMask(indices, shapes, always=tuple(paths))
    else:
        frozen = [v for v in before if v.path not in paths]
        for variable in frozen:
            variable.trainable = False
        try:
            yield None
        finally:
            for variable in frozen:
                variable.trainable = True


def _delta_bytes(model: keras.Model, mask: kbt.SparseMask, problem: Problem) -> int:
    weights = zip(model.weights, problem.weights, strict=True)
    base = {variable.path: start for variable, start in weights}
    return kbt.SparseDelta.from_model(model, mask=mask, base=base).nbytes


def cells_of(
    tasks: Iterable[str],
    chosen: Iterable[str],
    fractions: Iterable[float],
    head: str,
    seeds: Iterable[int],
) -> Iterator[Cell]:
    """Yield the cells, seed by seed, so that whole tables come first."""
    for seed in seeds:
        for fraction in fractions:
            for task in tasks:
                for method in chosen:
                    own = method in methods.NO_FRACTION
                    yield Cell(task, method, None if own else fraction, head, seed)
