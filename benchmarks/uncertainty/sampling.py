"""Why Langevin draws of stage 2 harmed: the same sampler with one thing changed."""

import keras
import numpy as np
from keras import ops

import keras_bayestune as kbt
from benchmarks.quality.evaluation import batches, outputs_of
from benchmarks.quality.stage2 import Stage2
from benchmarks.uncertainty.blocks import base_of, mask_of, measures
from benchmarks.uncertainty.iterates import Iterates
from keras_bayestune.samplers import Collapsed
from keras_bayestune.samplers.sampler import pull_and_spread

DRAWS = 10


class NoPrior(Collapsed):
    """The same dynamics under a flat prior."""

    def update(self, displacement, gradient, slots, noises, step, step_size, prior):
        """Return the displacement after one update."""
        _, spread = pull_and_spread(step, step_size)
        return displacement - step_size * gradient + spread * noises[0], {}


VARIANTS = {
    "as it was": (Collapsed(), 1.0),
    "without noise": (Collapsed(), 0.0),
    "without prior": (NoPrior(), 1.0),
    "without prior and noise": (NoPrior(), 0.0),
}


def run(suite, task, seed, fraction):
    """Print one line for each variant: ten averaged draws, and the last one alone."""
    problem = suite.problem(task, seed, "always")
    model, base, steps = problem.model, base_of(problem), suite.finetune_steps
    _, mask = mask_of(suite, problem, seed, fraction)
    model.set_weights(problem.weights)
    stage2 = Stage2(model, mask, problem.loss, suite.compiles_once)
    print("| stage 2 | rate | accuracy | NLL | last draw's NLL | displacement |")
    print("| --- | --- | --- | --- | --- | --- |")
    for rate in suite.rates:
        data = batches(problem.train, suite.batch_size, seed)
        stage2.train(data, steps, rate)
        _show("Adam", rate, problem, [_probabilities(model, problem)], mask, base)
    for rate in suite.rates:
        for name, (sampler, noise_scale) in VARIANTS.items():
            # Beside the one that is compiled for `Stage2`: the same layers.
            beside = keras.Model(model.input, model.output)
            beside.set_weights(problem.weights)
            optimizer = kbt.BayesTuneSGLD(
                rate,
                effective_size=len(problem.train[1]),
                noise_scale=noise_scale,
                sampler=sampler,
                warmup_steps=steps // 2,
                burn_in_steps=steps // 2,
                exclude=problem.head,
                seed=seed,
            )
            draws = Iterates(mask, base, steps // 2, steps // 2 // DRAWS)
            beside.compile(kbt.SparseOptimizer(optimizer, mask), problem.loss)
            beside.fit(
                batches(problem.train, suite.batch_size, seed),
                steps_per_epoch=steps,
                shuffle=False,
                verbose=0,
                callbacks=[draws],
            )
            moved = _displacement(model, mask, base)
            beside.set_weights(problem.weights)
            found = []
            for delta in draws.deltas:
                with delta.applied(model):
                    found.append(_probabilities(model, problem))
            _show(name, rate, problem, found, mask, base, moved)


def _probabilities(model, problem):
    outputs = outputs_of(model, problem.test[0])
    return ops.convert_to_numpy(ops.softmax(outputs)).astype("float64")


def _displacement(model, mask, base):
    """Root mean square of the selected scalars' displacement, the head's left out."""
    moved = [
        (ops.convert_to_numpy(v) - base[v.path]).ravel()[mask.indices[v.path]]
        for v in model.trainable_variables
        if v.path not in mask.always
    ]
    return float(np.sqrt(np.mean(np.concatenate(moved) ** 2)))


def _show(name, rate, problem, found, mask, base, moved=None):
    if moved is None:
        moved = _displacement(problem.model, mask, base)
    mean = measures(np.mean(found, axis=0), problem.test[1])
    last = measures(found[-1], problem.test[1])
    print(
        f"| {name} | {rate:g} | {100 * mean['accuracy']:.1f} | {mean['NLL']:.3f} | "
        f"{last['NLL']:.3f} | {moved:.3f} |",
        flush=True,
    )
