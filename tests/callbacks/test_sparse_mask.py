"""Both stages in one `fit`."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import SGD, Adam, AdamW, LossScaleOptimizer

from keras_bayestune import (
    BayesTuneSGLD,
    SparseMask,
    SparseMaskCallback,
    SparseOptimizer,
)
from keras_bayestune.budgets import PerLayer

BACKEND = keras.backend.backend()
BATCH, BATCHES = 4, 6
JIT = BACKEND == "jax"  # XLA on TensorFlow has its tests beside the optimizers


def new_data(batches=BATCHES):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batches * BATCH, 4)).astype("float32")
    return x, (x[:, :2] * x[:, 2:]).astype("float32")


def new_model(policy="float32", **arguments):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="a"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="head", dtype="float32"),
        ]
    )
    model.compile(stage_one(**arguments), loss="mse", jit_compile=JIT)
    return model


def stage_one(**arguments):
    arguments = {
        "warmup_steps": 2,
        "burn_in_steps": 3,
        "thinning": 1,
        "exclude": "head",
        "seed": 3,
        **arguments,
    }
    return BayesTuneSGLD(1e-2, **arguments)


def fit(model, callbacks, data=None, **arguments):
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **arguments}
    x, y = new_data() if data is None else data
    return model.fit(x, y, callbacks=callbacks, **arguments)


def bits(variables):
    return {v.path: ops.convert_to_numpy(v).tobytes() for v in variables}


def arrays(model):
    return {v.path: np.array(ops.convert_to_numpy(v)) for v in model.variables}


def frozen(array, indices):
    return np.delete(array.reshape(-1), indices)


class At(keras.callbacks.Callback):
    """Calls a function at the beginning of an epoch."""

    def __init__(self, epoch, function):
        super().__init__()
        self.epoch, self.function = epoch, function

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.function(self.model)


def test_both_stages_in_one_fit():
    model = new_model()
    pretrained = arrays(model)
    seen = {}
    select = SparseMaskCallback(
        fraction=0.3, selection_epochs=2, finetune_optimizer=AdamW(0.01)
    )
    history = fit(
        model,
        [select, At(2, lambda model: seen.update(arrays(model)))],
        epochs=4,
        validation_data=new_data(2),
    ).history
    mask = select.mask
    assert mask.count == int(0.3 * (4 * 5 + 5 + 5 + 5)) + 5 * 2 + 2
    assert set(mask.always) == {"sequential/head/kernel", "sequential/head/bias"}
    assert mask == SparseMask.from_scores(
        select.scores, 0.3, always={p: pretrained[p].shape for p in mask.always}
    )
    # At the switch: everything as pre-trained, but for the head, which keeps what it
    # learned.
    for path, value in pretrained.items():
        same = seen[path].tobytes() == value.tobytes()
        assert same == (path not in mask.always), path
    assert all(
        anchor.tobytes() == pretrained[path].tobytes()
        for path, anchor in select.anchors.items()
    )
    assert pretrained.keys() - select.anchors.keys() == set(mask.always)
    # In stage 2 only the selected scalars move, and statistics.
    now = arrays(model)
    for path, indices in mask.indices.items():
        old, new = pretrained[path], now[path]
        assert frozen(new, indices).tobytes() == frozen(old, indices).tobytes()
        assert (new.flat[indices] != seen[path].flat[indices]).all()
    assert (now["sequential/norm/moving_mean"] != 0).all()
    assert isinstance(model.optimizer, SparseOptimizer)
    assert isinstance(model.optimizer.inner, AdamW)
    assert history["stage"] == [1, 1, 2, 2]
    assert history["samples"] == [3, 9, 9, 9]
    assert "skipped_steps" not in history  # there are none
    assert len(history["loss"]) == len(history["val_loss"]) == 4
    assert select.metadata["samples"] == 9


def in_two_fits(sampling_batches, path, policy="float32", use_ema=False):
    """Stage 1, the mask through a file, stage 2 on the rest of three epochs."""
    x, y = (np.concatenate([a] * 3) for a in new_data())
    model = new_model(policy, use_ema=use_ema)
    select = SparseMaskCallback(fraction=0.3)
    first = sampling_batches * BATCH
    fit(model, [select], data=(x[:first], y[:first]))
    select.mask.save(path)
    model.compile(
        SparseOptimizer(inner(), SparseMask.load(path)), loss="mse", jit_compile=JIT
    )
    fit(model, [], data=(x[first:], y[first:]))
    return model, select


def inner():
    return AdamW(0.01, weight_decay=0.1, clipnorm=0.5)


@pytest.mark.parametrize(
    ("end", "batches", "use_ema"),
    [
        ({"selection_epochs": 2}, 12, False),
        ({"selection_steps": 8}, 8, False),
        ({"selection_epochs": 2}, 12, True),
    ],
    ids=["epochs", "steps", "moving average"],
)
def test_one_fit_is_two_fits_with_the_mask_saved_in_between(
    end, batches, use_ema, tmp_path
):
    two, expected = in_two_fits(batches, tmp_path / "mask", use_ema=use_ema)
    one = new_model(use_ema=use_ema)
    select = SparseMaskCallback(fraction=0.3, finetune_optimizer=inner(), **end)
    fit(one, [select], epochs=3)
    assert select.mask == expected.mask
    for path, score in expected.scores.items():
        assert select.scores[path].tobytes() == score.tobytes()
    assert bits(one.variables) == bits(two.variables)
    assert list(bits(one.optimizer.variables).values()) == list(
        bits(two.optimizer.variables).values()
    )


def test_only_the_mask():
    model = new_model(use_ema=True)
    pretrained = arrays(model)
    select = SparseMaskCallback(threshold=0.008)
    history = fit(model, [select]).history
    # Moving averages are set before a callback hears of the end of `fit`.
    for path, value in pretrained.items():
        same = arrays(model)[path].tobytes() == value.tobytes()
        assert same == ("head" not in path), path
    assert isinstance(model.optimizer, BayesTuneSGLD)
    competing = {p: i for p, i in select.mask.indices.items() if "head" not in p}
    for path, indices in competing.items():
        expected = np.flatnonzero(select.scores[path] > 0.008)
        np.testing.assert_array_equal(indices, expected)
    size = sum(score.size for score in select.scores.values())
    fraction = sum(map(len, competing.values())) / size
    assert history["fraction_above_threshold"] == [fraction]
    assert 0 < fraction < 1


@pytest.mark.parametrize(
    ("end", "samples"),
    [({"selection_epochs": 2}, 9), ({"selection_steps": 9}, 6)],
    ids=["epochs", "steps"],
)
def test_without_a_stage_two_fit_ends_with_stage_one(end, samples):
    model = new_model()
    pretrained = arrays(model)
    select = SparseMaskCallback(fraction="auto", **end)
    history = fit(model, [select], epochs=4).history
    assert "stage" not in history  # there is one only
    assert history["samples"] == [3, samples]
    assert select.metadata["samples"] == model.optimizer.num_samples == samples
    assert select.mask.candidates
    competing = sum(s.size for s in select.scores.values())
    chosen = select.mask.count - 12
    assert chosen / competing == pytest.approx(select.mask.candidates[0], abs=1 / 35)
    assert isinstance(model.optimizer, BayesTuneSGLD)
    for path, anchor in select.anchors.items():
        assert arrays(model)[path].tobytes() == pretrained[path].tobytes()
        assert anchor.tobytes() == pretrained[path].tobytes()


def test_anchors_need_not_be_restored():
    model = new_model()
    pretrained = arrays(model)
    select = SparseMaskCallback(
        fraction=0.3,
        selection_epochs=1,
        finetune_optimizer=SGD(0.0),
        stage_2_start="last state",
    )
    fit(model, [select], epochs=2)
    assert (
        arrays(model)["sequential/a/kernel"] != pretrained["sequential/a/kernel"]
    ).all()
    np.testing.assert_array_equal(
        select.anchors["sequential/a/kernel"], pretrained["sequential/a/kernel"]
    )


def test_weights_loaded_after_compile_are_the_anchors():
    model = new_model()
    model.optimizer.build(model.trainable_variables)
    model.layers[0].set_weights([np.full((4, 5), 0.5), np.full(5, 0.25)])
    select = SparseMaskCallback(fraction=0.3)
    fit(model, [select])
    assert (select.anchors["sequential/a/kernel"] == 0.5).all()
    assert (select.anchors["sequential/a/bias"] == 0.25).all()
    assert (model.layers[0].get_weights()[0] == 0.5).all()


def test_another_fit_goes_on_in_stage_two(tmp_path):
    model = new_model()
    select = SparseMaskCallback(
        fraction=0.3, selection_epochs=1, finetune_optimizer=Adam(0.01, use_ema=True)
    )
    fit(model, [select], epochs=2)
    mask, before = select.mask, bits(model.trainable_variables)
    history = fit(model, [select]).history
    assert history["stage"] == [2]
    assert select.mask is mask
    assert bits(model.trainable_variables) != before
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 2 * BATCHES


@pytest.mark.parametrize(
    ("arguments", "per_execution", "samples"),
    [
        # 9 batches are 4 updates, of which the last is a sample
        ({"gradient_accumulation_steps": 2, "use_ema": True}, 1, 1),
        # 4 + 2 batches in the first epoch, then 4 more
        pytest.param(
            *({}, 4, 7),
            marks=pytest.mark.skipif(BACKEND == "torch", reason="Keras has it not"),
        ),
    ],
    ids=["accumulation", "steps_per_execution"],
)
def test_the_switch_by_steps_counts_batches(arguments, per_execution, samples):
    model = new_model(**arguments)
    model.compile(
        model.optimizer, loss="mse", jit_compile=JIT, steps_per_execution=per_execution
    )
    pretrained = arrays(model)
    select = SparseMaskCallback(
        fraction=0.3, selection_steps=9, finetune_optimizer=AdamW(0.01, **arguments)
    )
    history = fit(model, [select], epochs=3).history
    assert select.metadata["samples"] == samples
    assert history["stage"] == [1, 2, 2]
    now = arrays(model)
    for path, indices in select.mask.indices.items():
        old, new = pretrained[path], now[path]
        assert frozen(new, indices).tobytes() == frozen(old, indices).tobytes()


def test_mixed_precision_keeps_scaling_the_loss():
    model = new_model("mixed_float16")
    assert isinstance(model.optimizer, LossScaleOptimizer)
    scaled = LossScaleOptimizer(stage_one(), initial_scale=4.0, dynamic_growth_steps=4)
    model.compile(scaled, loss="mse", jit_compile=JIT)
    pretrained = arrays(model)
    select = SparseMaskCallback(
        fraction=0.3,
        selection_epochs=2,
        finetune_optimizer=AdamW(0.01, weight_decay=0.1, loss_scale_factor=2.0),
    )
    scales = []
    watch = At(2, lambda m: scales.append(float(m.optimizer.dynamic_scale.numpy())))
    history = fit(model, [select, watch], epochs=3).history
    assert history["stage"] == [1, 1, 2]
    assert history["samples"][-1] == 9
    assert isinstance(model.optimizer, LossScaleOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, SparseOptimizer)
    assert model.optimizer.dynamic_growth_steps == 4
    assert scales == [32.0]  # doubled after every fourth of 12 batches
    now = arrays(model)
    for path, indices in select.mask.indices.items():
        old, new = pretrained[path], now[path]
        assert frozen(new, indices).tobytes() == frozen(old, indices).tobytes()
        assert (new.flat[indices] != old.flat[indices]).any() or not len(indices)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("sampling", "stages"), [({}, None), ({"selection_steps": 4}, [2])]
)
def test_a_data_set_of_unknown_length(sampling, stages):
    def batches():
        x, y = new_data()
        for start in range(0, len(x), BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]

    model = new_model()
    optimizer = Adam(0.01) if sampling else None
    select = SparseMaskCallback(fraction=0.3, finetune_optimizer=optimizer, **sampling)
    history = model.fit(batches(), verbose=0, callbacks=[select]).history
    assert history.get("stage") == stages
    assert select.metadata["samples"] == (1 if sampling else 3)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("finetune", [True, False])
@pytest.mark.parametrize("steps", [BATCHES, 2 * BATCHES])
def test_stage_one_ends_with_an_epoch_of_unknown_length(steps, finetune):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(new_data())
    data = data.filter(lambda x, y: True).batch(BATCH)  # it does not say its length
    results = []
    for known in (True, False):
        model = new_model()
        optimizer = Adam(0.01) if finetune else None
        select = SparseMaskCallback(
            fraction=0.3, selection_steps=steps, finetune_optimizer=optimizer
        )
        if known:
            history = fit(model, [select], epochs=4)
        else:
            history = model.fit(data, epochs=4, verbose=0, callbacks=[select])
        epochs = history.history.get("stage", len(history.history["loss"]))
        results.append((epochs, select.mask, model.get_weights()))
    (*known, expected), (*unknown, weights) = results
    assert known == unknown
    if finetune and BACKEND == "tensorflow":
        return  # Keras 3.15 counts an update at each such end, under Adam alone as well
    for weight, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-6)


def test_checkpoints_and_early_stopping_beside_it(tmp_path):
    model = new_model()
    save = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    stop = keras.callbacks.EarlyStopping("loss", min_delta=9.0, patience=1)
    select = SparseMaskCallback(
        fraction=0.3,
        selection_epochs=1,
        finetune_optimizer=Adam(0.01),
        stage_2_callbacks=[stop],
    )
    history = fit(model, [select, save], epochs=9).history
    assert history["stage"] == [1, 2, 2]
    # The callback came first: at the end of the first epoch stage 2 has begun.
    loaded = keras.saving.load_model(tmp_path / "3.keras")
    assert isinstance(loaded.optimizer, SparseOptimizer)
    assert loaded.optimizer.mask == select.mask
    assert list(bits(loaded.variables).values()) == list(bits(model.variables).values())


def test_a_fit_that_is_stopped_before_a_sample_is_an_error():
    model = new_model(burn_in_steps=30)
    stop = keras.callbacks.EarlyStopping("loss", min_delta=9.0, patience=1)
    select = SparseMaskCallback(fraction=0.3)
    message = r"12 updates were run .* first sample comes after update 31 \(burn_in"
    pretrained = bits(model.trainable_variables)
    with pytest.raises(ValueError, match=message):
        fit(model, [select, stop], epochs=9)
    now = bits(model.trainable_variables)
    changed = {path for path in now if now[path] != pretrained[path]}
    assert changed == {"sequential/head/kernel", "sequential/head/bias"}


def test_skipped_updates_are_reported():
    x, y = new_data()
    x[5, 0] = np.nan  # the second of six batches
    model = new_model()
    select = SparseMaskCallback(
        fraction=0.3, selection_epochs=2, finetune_optimizer=Adam(0.01)
    )
    with pytest.warns(UserWarning, match="3 updates were skipped because a gradient"):
        history = fit(model, [select], data=(x, y), epochs=3).history
    assert history["skipped_steps"] == [1, 2, 3]
    assert history["samples"] == [2, 7, 7]


def test_noise_that_dominates_is_reported():
    model = new_model(effective_size=1.0)
    select = SparseMaskCallback(fraction=0.3)
    with pytest.warns(UserWarning, match="The noise of one update"):
        fit(model, [select])


def test_budget_per_layer():
    model = new_model()
    select = SparseMaskCallback(fraction=0.2, budget=PerLayer())
    fit(model, [select])
    chosen = {p: len(i) for p, i in select.mask.indices.items() if "head" not in p}
    layers = {name: 0 for name in ("a", "norm")}
    for path, count in chosen.items():
        layers[path.split("/")[1]] += count
    assert layers == {"a": 5, "norm": 2}


def test_trace_and_plots(tmp_path):
    model = new_model(sampler=None)
    select = SparseMaskCallback(fraction=0.3, trace_scalars=7, plot_dir=tmp_path / "p")
    history = fit(model, [select]).history
    assert select.trace.shape == (3, 7)
    # The mean of what was followed is the posterior mean.
    scores = np.concatenate([s.ravel() for s in select.scores.values()])
    followed = np.linspace(0, scores.size - 1, 7).astype("int64")
    np.testing.assert_allclose(
        select.trace.mean(axis=0), scores[followed], rtol=1e-5, atol=1e-9
    )
    assert history["samples"] == [3]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "mask.png",
        "scales.png",
        "trace.png",
    ]
