"""The delta of a real run: both stages, then file, fresh model, and base again."""

import keras
import numpy as np
import pytest

from keras_bayestune import (
    BayesTuneSGLD,
    SparseMask,
    SparseMaskCallback,
    SparseOptimizer,
    fine_tune,
)
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.selectors import Magnitude


@pytest.fixture
def run(small):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype("float32")
    y = rng.integers(0, 3, 64)

    def fit(**options):
        model = small.build()
        optimizer = BayesTuneSGLD(
            1e-3,
            warmup_steps=2,
            burn_in_steps=4,
            thinning=1,
            exclude=["logits"],
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        select = SparseMaskCallback(fraction=0.1, selection_epochs=1, **options)
        model.fit(x, y, batch_size=8, epochs=2, callbacks=[select], verbose=0)
        return model, select

    return fit


def test_saved_and_applied_to_a_fresh_model(run, small, tmp_path):
    adam = keras.optimizers.Adam(1e-2, weight_decay=0.1)
    model, select = run(finetune_optimizer=adam)
    delta = SparseDelta.from_model(model, select, metadata={"task": "digits"})
    delta.save(tmp_path / "d.safetensors")
    loaded = SparseDelta.load(tmp_path / "d.safetensors")
    assert loaded.metadata["task"] == "digits"
    assert loaded.metadata["selector"] == select.metadata["selector"]
    assert loaded.metadata["fraction"] == 0.1

    fresh = small.build()
    fresh.get_layer("logits").kernel.assign(np.zeros((6, 3)))
    before = small.bits(fresh)
    loaded.apply(fresh)
    assert small.bits(fresh) == small.bits(model)
    loaded.revert(fresh)
    assert small.bits(fresh) == before
    # The selection, the head, and the two moving statistics.
    assert delta.count == select.mask.count + 12
    statistics = [path for path in delta.variables if "moving" in path]
    assert all(delta.variables[path].is_whole for path in statistics)


def test_not_restored_to_the_base(run):
    adam = keras.optimizers.Adam(1e-2)
    model, select = run(finetune_optimizer=adam, stage_2_start="last state")
    with pytest.raises(ValueError, match="from the base.*stage_2_start=.*Early"):
        SparseDelta.from_model(model, select)


def test_mask_only(run, small):
    """Without a second stage the selected scalars are those of the base."""
    model, select = run()
    delta = SparseDelta.from_model(model, select)
    before = small.build()
    delta.apply(before)
    assert small.bits(before) == small.bits(model)


def towers(frozen=False):
    """Two towers built by one function, so that their variables share paths."""

    def tower(inputs):
        x = keras.layers.Dense(6, activation="tanh", name="fc1")(inputs)
        x = keras.layers.BatchNormalization(name="norm")(x)
        return keras.Model(inputs, x)

    both = [tower(keras.Input((4,))) for _ in range(2)]
    both[0].trainable = not frozen
    inputs = keras.Input((4,))
    x = keras.layers.Concatenate()([one(inputs) for one in both])
    model = keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize(("frozen", "way"), [(False, "fine_tune"), (True, "callback")])
def test_towers_of_one_function(frozen, way, small, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4)).astype("float32")
    y = rng.integers(0, 3, 32)
    model = towers(frozen)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if way == "callback":
        model.compile(
            BayesTuneSGLD(
                1e-3, warmup_steps=1, burn_in_steps=2, thinning=1, exclude=["logits"]
            ),
            loss,
        )
        select = SparseMaskCallback(
            fraction=0.2,
            selection_epochs=1,
            finetune_optimizer=keras.optimizers.Adam(1e-2),
        )
        model.fit(x, y, batch_size=8, epochs=2, callbacks=[select], verbose=0)
        mask, delta = select.mask, SparseDelta.from_model(model, select)
    else:
        result = fine_tune(
            model,
            (x, y),
            selector=Magnitude(),
            fraction=0.2,
            loss=loss,
            finetune_epochs=1,
            batch_size=8,
            exclude=["logits"],
            verbose=0,
        )
        mask, delta = result.mask, result.delta
    kernels = [path for path in mask.shapes if path.endswith("/kernel")]
    expected = ["fc1/kernel", "fc1#2/kernel", "logits/kernel"]
    assert kernels == (expected[::2] if frozen else expected)
    delta.save(tmp_path / "d.safetensors")
    fresh = towers(frozen)
    before = small.bits(fresh)
    assert small.bits(model) != before
    loaded = SparseDelta.load(tmp_path / "d.safetensors")
    loaded.apply(fresh)
    assert small.bits(fresh) == small.bits(model)
    loaded.revert(fresh)
    assert small.bits(fresh) == before
    # Outside the mask nothing moved: the other tower's scalars neither.
    stored = [delta.variables[path] for path in ("fc1/kernel", "fc1#2/kernel")]
    selected = [mask.indices[path] for path in mask.shapes if "fc1" in path][::2]
    selected = [np.empty(0), *selected] if frozen else selected
    for variable, indices in zip(stored, selected, strict=True):
        np.testing.assert_array_equal(variable.indices, indices)


@keras.saving.register_keras_serializable(package="test_two_stages")
class Net(keras.Model):
    """Has a weight of its own; Keras calls its layers otherwise once it is loaded."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.head = keras.layers.Dense(3, name="head")
        self.body = [keras.layers.Dense(4) for _ in range(2)]

    def call(self, inputs):
        for layer in self.body:
            inputs = layer(inputs) * self.scale
        return self.head(inputs)


def new_net():
    model = Net(name="net")
    model(np.zeros((1, 4)))
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


DATA = np.ones((8, 4), "float32"), np.ones((8, 3), "float32")


def test_a_renamed_model_keeps_its_mask(small, tmp_path):
    model = new_net()
    paths = [v.path for v in model.trainable_variables]
    assert paths[1] == "net/head/kernel"
    scores = {v.path: np.random.rand(*v.shape) for v in model.trainable_variables[3:]}
    always = {v.path: tuple(v.shape) for v in model.trainable_variables[:3]}
    mask = SparseMask.from_scores(scores, fraction=0.3, always=always)
    assert list(mask.shapes) != paths  # what is taken whole was added last
    model.compile(SparseOptimizer(keras.optimizers.Adam(1e-2), mask), loss="mse")
    model.fit(*DATA, verbose=0)
    model.save(tmp_path / "net.keras")

    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert [v.path for v in loaded.trainable_variables[:2]] != paths[:2]
    assert loaded.optimizer.mask.count == mask.count
    before = [small.array(v).reshape(-1) for v in loaded.trainable_variables]
    loaded.fit(*DATA, epochs=3, verbose=0)
    for variable, start, path in zip(
        loaded.trainable_variables, before, paths, strict=True
    ):
        moved = np.flatnonzero(small.array(variable).reshape(-1) != start)
        assert set(moved) <= set(mask.indices[path])
        assert len(moved)
    ordered = mask.in_order_of(model.trainable_variables)
    assert ordered == mask
    assert list(ordered.shapes) == paths
    matched = ordered.match(loaded.trainable_variables)
    for indices, path in zip(matched.values(), paths, strict=True):
        np.testing.assert_array_equal(indices, mask.indices[path])
    # Without the model's order it would be a guess, which of `dense` and `dense_1`.
    reordered = SparseMask(
        {p: mask.indices[p] for p in reversed(mask.shapes)},
        {p: mask.shapes[p] for p in reversed(mask.shapes)},
    )
    with pytest.raises(ValueError, match="for another model.*net/head/kernel"):
        reordered.match(loaded.trainable_variables)


@pytest.mark.filterwarnings("ignore:.*ended without SparseMaskCallback")
def test_a_renamed_model_keeps_its_patterns(tmp_path):
    model = new_net()
    optimizer = BayesTuneSGLD(
        1e-3, warmup_steps=1, burn_in_steps=2, thinning=1, exclude=["/head/"]
    )
    model.compile(optimizer, loss="mse")
    for start in range(0, len(DATA[0]), 2):
        model.train_on_batch(*(a[start : start + 2] for a in DATA))
    assert optimizer.excluded_paths() == ("net/head/kernel", "net/head/bias")
    for turn in range(2):  # and the loaded one is saved in its turn
        model.save(tmp_path / f"{turn}.keras")
        model = keras.saving.load_model(tmp_path / f"{turn}.keras")
        head = model.head.trainable_variables
        assert model.optimizer.excluded_paths() == tuple(v.path for v in head)
        assert model.optimizer.num_updates == 4
    select = SparseMaskCallback(
        fraction=0.2, selection_epochs=1, finetune_optimizer=keras.optimizers.Adam(1e-3)
    )
    model.fit(*DATA, batch_size=2, epochs=2, callbacks=[select], verbose=0)
    assert set(select.mask.always) == {v.path for v in head}
