"""One task under one seed: tune, take every method, measure."""

import time

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

import keras_bayestune as kbt
from benchmarks.quality import methods as selection
from benchmarks.quality.evaluation import batches, evaluate
from benchmarks.quality.stage2 import Stage2
from benchmarks.uncertainty import methods
from benchmarks.uncertainty.iterates import Iterates
from benchmarks.uncertainty.kept import Kept
from keras_bayestune.diagnostics import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)
from keras_bayestune.uncertainty import ensemble
from keras_bayestune.uncertainty.calibration import best_temperature
from keras_bayestune.uncertainty.predicting import tempered


def run(suite, task, seed, fraction, chosen, folder=None):
    """Return a record for each method, and one for it calibrated."""
    start = time.perf_counter()
    kept = Kept(folder, {"task": task, "seed": seed, "fraction": fraction})
    tuned, rate, seconds = tune(suite, task, seed, fraction, kept)
    problem = suite.problem(task, seed, "always")
    tuned.model.set_weights(problem.weights)
    print(f"{task} {seed}: tuned, {time.perf_counter() - start:.0f} s", flush=True)
    data = {
        "test": problem.test,
        "validation": problem.validation,
        **suite.shifts(task, problem.test),
    }
    out = suite.out_of_distribution(task, problem.test)
    one_pass = min(_seconds_of_a_pass(tuned, problem.test[0]) for _ in range(2))

    def records(name):
        begin = time.perf_counter()
        posterior = methods.METHODS[name](tuned)
        if posterior is None:
            return []
        made = time.perf_counter() - begin
        draws = methods.DRAWS if any(posterior.deviations) else None

        def predict(x):
            found = posterior.predict(tuned.model, x, draws, batch_size=50, verbose=0)
            return found.mean

        begin = time.perf_counter()
        p = {"test": predict(problem.test[0])}
        predicting = time.perf_counter() - begin
        p |= {part: predict(x) for part, (x, _) in data.items() if part != "test"}
        outside = predict(out)
        temperature = best_temperature(p["validation"], problem.validation[1])
        found = []
        for label, t in ((name, 1.0), (f"{name}, calibrated", temperature)):
            at = {part: tempered(q, t) for part, q in p.items()}
            figures = {part: measures(at[part], y) for part, (_, y) in data.items()}
            record = {
                "block": {"task": task, "seed": seed, "fraction": fraction},
                "method": label,
                "test": figures.pop("test"),
                "validation": figures.pop("validation"),
                "shift": figures,
                "in or out": _auroc_out(at["test"], tempered(outside, t)),
                "temperature": round(t, 4),
                "chosen": dict(posterior.metadata),
                "rate": rate,
                "bytes": posterior.nbytes,
                "passes": draws or len(posterior.deltas),
                "seconds": {
                    **seconds,
                    "method": round(made, 2),
                    "prediction": round(predicting, 3),
                    "one pass": round(one_pass, 3),
                },
                "backend": keras.backend.backend(),
            }
            found.append(record)
        print(f"{task} {seed}: {name}, {time.perf_counter() - start:.0f} s", flush=True)
        return found

    return [
        record
        for name in chosen
        for record in kept.records(name, lambda name=name: records(name))
    ]


def tune(suite, task, seed, fraction, kept):
    """Return deltas under one mask, the rate of stage 2, and seconds."""
    problem = suite.problem(task, seed, "always")
    model = problem.model
    base = base_of(problem)
    clock = time.perf_counter()
    scores = kept.scores(lambda: scores_of(suite, problem, seed))
    mask = mask_from(model, scores, fraction)
    seconds = {"selection": round(time.perf_counter() - clock, 2)}
    model.set_weights(problem.weights)
    stage2 = Stage2(model, mask, problem.loss, suite.compiles_once)
    steps = suite.finetune_steps

    def train(rate, order, callbacks=()):
        data = batches(problem.train, suite.batch_size, order)
        stage2.train(data, steps, rate, callbacks)

    found = {}
    for rate in suite.rates if len(suite.rates) > 1 else ():
        stage2.weights = problem.weights
        train(rate, seed)
        value = evaluate(problem, model, problem.validation)
        found[rate] = next(iter(value.values())), -value["NLL"]
    rate = max(found, key=found.__getitem__, default=suite.rates[0])

    iterates = Iterates(mask, base, steps // 2, max(1, steps // 40))
    model.set_weights(problem.weights)

    def shared(order):
        return kept.delta(order, lambda: member(order))

    def member(order):
        stage2.weights = model.get_weights()
        is_point = suite.iterates and order == _order(seed, 0)
        train(rate, order, [iterates] if is_point else ())
        return kbt.SparseDelta.from_model(model, mask=mask, base=base)

    clock = time.perf_counter()
    posterior = ensemble(
        model, shared, suite.members, head=problem.head, seed=_order(seed, 0)
    )
    seconds["ensemble"] = round(time.perf_counter() - clock, 2)
    own_masks = [posterior.deltas[0]]
    for k in range(1, methods.MEMBERS if suite.own_masks else 0):
        _, other = mask_of(suite, problem, _order(seed, k), fraction)
        model.set_weights(problem.weights)
        stage2 = Stage2(model, other, problem.loss, suite.compiles_once)
        mask = other
        own = ensemble(model, member, 2, head=problem.head, seed=_order(seed, k) - 1)
        own_masks.append(own.deltas[1])
    model.set_weights(problem.weights)
    tuned = methods.Tuned(
        model,
        list(posterior.deltas),
        own_masks if suite.own_masks else [],
        iterates.deltas,
        scores,
        problem.train,
        problem.validation,
        problem.loss,
        suite.effective_sizes,
    )
    return tuned, rate, seconds


def _order(seed, member):
    return 1000 * (seed + 1) + 20 * member


def base_of(problem):
    weights = zip(problem.model.weights, problem.weights, strict=True)
    return {variable.path: np.array(start) for variable, start in weights}


def mask_of(suite, problem, seed, fraction):
    scores = scores_of(suite, problem, seed)
    return scores, mask_from(problem.model, scores, fraction)


def scores_of(suite, problem, seed):
    problem.model.set_weights(problem.weights)
    return selection.SELECTIONS[selection.OURS](suite, problem, seed)[selection.OURS]


def mask_from(model, scores, fraction):
    head = {
        v.path: tuple(v.shape)
        for v in model.trainable_variables
        if v.path not in scores
    }
    return kbt.SparseMask.from_scores(scores, fraction, always=head)


def _seconds_of_a_pass(tuned, x):
    start = time.perf_counter()
    methods.point(tuned).predict(tuned.model, x, batch_size=50, verbose=0)
    return time.perf_counter() - start


def measures(p, y):
    """Return the figures of predicted probabilities."""
    right = p.argmax(axis=1) == y
    found = {
        "accuracy": float(np.mean(right)),
        "NLL": negative_log_likelihood(p, y),
        "ECE": expected_calibration_error(p, y),
        "Brier": brier_score(p, y),
    }
    if 0 < right.sum() < len(right):
        found["right or wrong"] = float(roc_auc_score(right, p.max(axis=1)))
    return {name: round(value, 5) for name, value in found.items()}


def _auroc_out(inside, outside):
    labels = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    sure = np.r_[inside.max(axis=1), outside.max(axis=1)]
    return round(float(roc_auc_score(labels, sure)), 5)
