"""A run of both stages that is killed again and again, and the same run left alone.

    python killed_run.py FOLDER KILLS MODE

Each life is a process of its own that SIGKILL ends: at a random batch, in the middle
of a write, or just before or after the new state takes the old one's name. MODE is
"state" (the callback's own file), "keras" (keras.callbacks.BackupAndRestore beside it)
or "clock" (killed from outside, after a random time). The last line printed is JSON.

The lives are forked from one process that has imported Keras but computed nothing.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow  # noqa: F401  (Keras would import it in each life)
from keras import ops

import keras_bayestune as kbt

BATCHES = 3  # of an epoch


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Log(keras.callbacks.Callback):
    """Write down what was begun, and die where told."""

    def __init__(self, folder, at=None):
        super().__init__()
        self.folder, self.at, self.batches = folder, at, 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        optimizer = self.model.optimizer
        stage_one = isinstance(optimizer, kbt.BayesTuneSGLD)
        with open(self.folder / "phases", "a") as file:
            file.write(f"{optimizer.phase if stage_one else 'stage 2'}\n")
        if self.batches == self.at:
            die()


def die_in(function, call, after):
    """Make the `call`-th call of `os.<function>` the last thing the process does."""
    original = getattr(os, function)
    calls = 0

    def deadly(*arguments):
        nonlocal calls
        calls += 1
        if calls == call and not after:
            die()
        result = original(*arguments)
        if calls == call:
            die()
        return result

    setattr(os, function, deadly)


def train(folder, epochs, selection_epochs, mode, at):
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4 * BATCHES, 4)).astype("float32")
    y = (x[:, :2] * x[:, 2:]).astype("float32")
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(6, activation="tanh", name="a"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(0.25),
        keras.layers.Dense(2, name="head"),
    ]
    if mode == "keras":
        del layers[3]  # Keras does not save the state of dropout's generator
    model = keras.Sequential(layers)
    steps = selection_epochs * BATCHES
    optimizer = kbt.BayesTuneSGLD(
        keras.optimizers.schedules.CosineDecay(1e-2, 2 * steps),
        warmup_steps=steps // 4,
        burn_in_steps=steps // 2,
        thinning=2,
        exclude="head",
        seed=3,
    )
    jit = keras.backend.backend() == "jax"
    # On TensorFlow the order comes from tf.data, whose state cannot be read.
    shuffle = mode != "keras" and keras.backend.backend() != "tensorflow"
    model.compile(optimizer, loss="mse", jit_compile=jit)
    select = kbt.SparseMaskCallback(
        fraction=0.4,
        selection_steps=steps - 1,  # in the middle of an epoch
        finetune_optimizer=keras.optimizers.AdamW(0.01, use_ema=True),
        trace_scalars=3,
        backup_dir=folder / "ours",
    )
    callbacks = [select]
    if mode == "keras":
        callbacks.append(keras.callbacks.BackupAndRestore(folder / "keras"))
    callbacks.append(Log(folder, at))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(
            x, y, batch_size=4, epochs=epochs, shuffle=shuffle, verbose=0,
            callbacks=callbacks,
        )  # fmt: skip
    arrays = [
        *model.variables,
        *model.optimizer.variables,
        *select.scores.values(),
        *select.anchors.values(),
        *select.mask.indices.values(),
        select.trace,
    ]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(ops.convert_to_numpy(array)).tobytes())
    result = {"digest": digest.hexdigest(), "samples": select.metadata["samples"]}
    (folder / "result.json").write_text(json.dumps(result))


def live(folder, epochs, selection_epochs, mode, rng):
    """One life, begun and over; whether it ended by itself."""
    at = after = None
    kind = "batch"
    if rng is not None and mode != "clock":
        at = rng.randint(1, 2 * BATCHES)
        kinds = ["batch", "fsync", "replace"] if mode == "state" else ["batch"]
        kind = rng.choice(kinds)
        after = rng.random() < 0.5
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if at is not None and kind != "batch":
                die_in(kind, rng.randint(1, 2), after)
                at = None
            train(folder, epochs, selection_epochs, mode, at)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if mode == "clock" and rng is not None:
        phases = folder / "phases"
        size = phases.stat().st_size if phases.exists() else 0
        while not (phases.exists() and phases.stat().st_size > size):
            time.sleep(0.01)  # compiling: nothing to lose yet
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                return "ended", True
        time.sleep(rng.uniform(0.0, 1.0))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return kind, False
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, status
    return "ended", True


def main(folder, kills, mode):
    selection_epochs = max(2, kills // 2)
    epochs = kills + 2
    rng = random.Random(kills)
    # Else JAX would compile the same steps in each life.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    expected, found = folder / "left alone", folder / "killed"
    for each in (expected, found):
        each.mkdir()
    assert live(expected, epochs, selection_epochs, mode, None)[1]
    deaths = []
    for life in range(100 * kills):
        kind, over = live(found, epochs, selection_epochs, mode, rng)
        if over:
            break
        deaths.append(kind)
        print(f"life {life}: {kind}", file=sys.stderr)
    assert over
    results = [json.loads((f / "result.json").read_text()) for f in (expected, found)]
    phases = (found / "phases").read_text().split("\n")
    print(
        json.dumps(
            {
                "kills": len(deaths),
                "kinds": {kind: deaths.count(kind) for kind in sorted(set(deaths))},
                "batches": len(phases) - 1,
                "phases": sorted(set(phases) - {""}),
                "equal": results[0] == results[1],
                "samples": [result["samples"] for result in results],
                "left": sorted(p.name for p in found.iterdir()),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
