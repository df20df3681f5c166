"""What a run says of itself: lines of text, numbers in the logs, the health report."""

import csv
import dataclasses
import math
import re

import keras
import numpy as np
import pytest

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback
from keras_bayestune.callbacks.health import CONTRAST_OF_NOISE, Health, health_of

NUMBERS = ["fraction_above_threshold", "effective_sample_size"]


def new_run(**arguments):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(5, "tanh", name="body"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(2, name="head"),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    sampler = BayesTuneSGLD(
        1e-2,
        warmup_steps=2,
        burn_in_steps=4,
        thinning=1,
        seed=3,
        exclude=["norm", "head"],
    )
    model.compile(sampler, loss="mse")
    adam = keras.optimizers.Adam(1e-2)
    arguments = {"finetune_optimizer": adam, "selection_epochs": 3, **arguments}
    return model, SparseMaskCallback(**arguments)


def fit(model, callbacks, **arguments):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4)).astype("float32")
    y = (x[:, :2] * x[:, 2:]).astype("float32")
    arguments = {"epochs": 5, "verbose": 2, "batch_size": 4, **arguments}
    return model.fit(x, y, callbacks=callbacks, shuffle=False, **arguments).history


def lines(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_the_lines_of_a_run(capsys):
    model, select = new_run(fraction=0.2, trace_scalars=3)
    fit(model, [select])
    told = lines(capsys)
    size = sum(math.prod(v.shape) for v in select.model.trainable_variables)
    assert told[0].startswith(
        f"Stage 1: 25 scalars are sampled; {size - 25} train beside them; the first "
        "sample comes after update 5; the optimizer's state takes "
    )
    assert told[0].endswith((" bytes.", " kB."))
    assert told[1] == "Epoch 1/5"
    start, end = told.index("Health of stage 1:"), told.index("Epoch 4/5")
    assert told[start : end - 1] == str(select.health).splitlines()
    assert told[end - 1] == (
        f"Stage 2: Adam trains {select.mask!r}, selected from 20 samples; pre-trained "
        "values and 2 statistics were restored; the next step is compiled anew, where "
        "the backend compiles."
    )
    assert len(told) == end + 4  # and nothing afterwards


@pytest.mark.parametrize("verbose", [0, 1])
def test_the_switch_within_an_epoch_and_silence(verbose, capsys):
    model, select = new_run(fraction=0.2, selection_epochs=None, selection_steps=9)
    fit(model, [select], epochs=2, verbose=verbose)
    told = capsys.readouterr().out
    if not verbose:
        assert told == ""
    else:
        assert (
            told.count("\nHealth of stage 1:\n") == told.count("\nStage 2: Adam") == 1
        )
    assert select.health.samples == 5


def test_where_a_run_goes_on(capsys, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == at:
                raise KeyboardInterrupt

    for at, stage, samples in ((1, 1, "4 samples taken"), (3, 2, "")):
        model, select = new_run(fraction=0.2, backup_dir=tmp_path)
        with pytest.raises(KeyboardInterrupt):
            fit(model, [select, Stop()])
        lines(capsys)
        model, select = new_run(fraction=0.2, backup_dir=tmp_path)
        fit(model, [select])
        told = lines(capsys)
        done = f"{8 * at} batches are done" + (f", {samples}" if samples else "")
        assert told[0] == f"Resumed in stage {stage} with epoch {at + 1}/5: {done}."
        assert select.health.samples == 20


def test_loggers_get_the_same_numbers(tmp_path):
    model, select = new_run(threshold=1e-9, trace_scalars=3)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, [select, log], verbose=0)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert history["stage"] == [1, 1, 1, 2, 2]
    assert history["samples"] == [4, 12, 20, 20, 20]
    for name in NUMBERS:
        # Of stage 1 only, and nowhere NaN.
        assert len(history[name]) == 3
        assert [row[name] for row in rows[3:]] == ["NA", "NA"]
    assert history["effective_sample_size"][0] == 0  # of four samples
    assert history["effective_sample_size"][2] == select.health.effective_sample_size
    for name in ("stage", "samples", *NUMBERS):
        found = [float(row[name]) for row in rows if row[name] != "NA"]
        assert found == pytest.approx(history[name])
    assert not {"skipped_steps", "share_above_threshold"} & history.keys()


def test_a_report():
    rng = np.random.default_rng(0)
    scales = np.abs(rng.normal(size=(100, 100)))
    optimizer = BayesTuneSGLD(1e-3)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    optimizer.build(model.trainable_variables)
    flat = health_of(optimizer, {"a": scales}, [1.0], {})
    assert flat.contrast == pytest.approx(CONTRAST_OF_NOISE, rel=0.05)
    assert (flat.first_loss, flat.effective_sample_size) == (None, None)
    scales.flat[:100] *= 50
    assert flat.without_gradient == 1.0  # no update was done
    steep = health_of(
        optimizer, {"a": scales}, [1.0, 2.0, 0.5], {"effective_sample_size": 7.2}
    )
    assert steep.contrast > 20
    assert (steep.first_loss, steep.last_loss) == (1.0, 0.5)
    assert steep.suggested_fraction == pytest.approx(0.01, rel=0.5)
    text = str(steep).splitlines()
    assert text[0] == "Health of stage 1:"
    assert "  loss              1 to 0.5" in text
    assert "  effective samples 7" in text
    equal = health_of(optimizer, {"a": np.zeros((3, 3))}, [], {})
    assert (equal.contrast, equal.suggested_fraction) == (None, None)


GOOD = Health(40, 1.0, 0.5, 31.0, 0.01, 12.0, 0.007)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"samples": 20}, None),
        ({"first_loss": None, "contrast": None}, None),
        ({"samples": 19}, "19 samples are few: .* lower burn_in_steps or thinning"),
        ({"last_loss": 1.0}, "The loss did not fall: .* try other learning rates"),
        ({"contrast": 4.1}, "as flat as those of noise, .* lower noise_scale"),
        ({"noise_per_step": 0.06}, "noise of an update is large .* Lower learning"),
    ],
)
def test_warnings_and_their_cures(changed, message):
    health = dataclasses.replace(GOOD, **changed)
    if message is None:
        assert health.warnings == ()
        assert "Warning" not in str(health)
    else:
        (warning,) = health.warnings
        assert re.search(message, warning)
        assert f"\n  Warning: {warning}" in str(health)
