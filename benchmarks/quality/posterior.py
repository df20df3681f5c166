"""Stage 2 as a sampler: BayesTune's mask, K draws, averaged predictions."""

import time

import keras
import numpy as np
from keras import ops

import keras_bayestune as kbt
from benchmarks.quality.evaluation import batches, figures, outputs_of
from keras_bayestune.callbacks import PosteriorDraws
from keras_bayestune.deltas import average_predictions

DRAWS = 10


def tune(suite, problem, mask, steps, seed):
    """As the other methods' tuning; also returns the bytes of the draws."""
    # Beside the one that others compiled: the same layers.
    model = keras.Model(problem.model.input, problem.model.output)
    rows = len(problem.train[1])
    weights = zip(model.weights, problem.weights, strict=True)
    base = {variable.path: start for variable, start in weights}
    best, validation, seconds = None, {}, []
    for rate in suite.rates:
        model.set_weights(problem.weights)
        sampler = kbt.BayesTuneSGLD(
            rate,
            effective_size=rows,
            warmup_steps=steps // 2,
            burn_in_steps=steps // 2,
            exclude=problem.head,
            seed=seed,
        )
        draws = PosteriorDraws(mask, base, steps // 2, steps // 2 // DRAWS)
        start = time.perf_counter()
        model.compile(kbt.SparseOptimizer(sampler, mask), problem.loss)
        model.fit(
            batches(problem.train, suite.batch_size, seed),
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=[draws],
        )
        seconds.append(time.perf_counter() - start)
        model.set_weights(problem.weights)
        found = _figures(problem, model, draws.deltas, problem.validation)
        validation[str(rate)] = found
        ranks = next(iter(found.values()))
        if best is None or ranks > best[0]:
            best = ranks, rate, draws.deltas
    return {
        "validation": validation,
        "rate": best[1],
        "test": _figures(problem, model, best[2], problem.test),
        "seconds": round(min(seconds), 2),
        "stored bytes": sum(delta.nbytes for delta in best[2]),
    }


def _figures(problem, model, deltas, data):
    def probabilities(model):
        outputs = outputs_of(model, data[0])
        if problem.is_classification:
            outputs = ops.convert_to_numpy(ops.softmax(outputs))
        return outputs

    mean = average_predictions(model, deltas, probabilities)
    if problem.is_classification:
        mean = np.log(np.maximum(mean, np.finfo("float32").tiny))
    return figures(problem, mean.astype("float32"), data[1])
