"""Both stages in reduced precision: float32 state, exact bits, overflow skipped."""

import keras
import ml_dtypes  # noqa: F401  (tells NumPy about bfloat16)
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, SparseMaskCallback
from keras_bayestune.optimizers import unscaled

# They look at the optimizer alone, and read its scales themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`fit` with BayesTuneSGLD ended")

JIT = keras.backend.backend() == "jax"


def new_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 4)).astype("float32")
    return x, (x[:, :2] * x[:, 2:]).astype("float32")


def new_model(dtype, **scaling):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(16, activation="tanh", name="a", dtype=dtype),
        keras.layers.Dense(2, name="head", dtype=dtype),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    # TensorFlow initialises a bfloat16 weight with other random numbers.
    rng = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape).astype("bfloat16") / 2)
    optimizer = BayesTuneSGLD(
        1e-2, warmup_steps=3, burn_in_steps=6, thinning=1, exclude="head", seed=3
    )
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, **scaling)
    model.compile(optimizer, loss="mse", jit_compile=JIT)
    return model


def train(model, watch):
    select = SparseMaskCallback(
        fraction=0.3,
        finetune_optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.1),
        selection_epochs=2,
    )
    x, y = new_data()
    arguments = {"epochs": 3, "batch_size": 4, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[watch, select], **arguments)
    return select


class Dtypes(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        optimizer = unscaled(self.model.optimizer)
        if epoch == 0:
            self.found = {
                v.path.split("_")[-1]: str(v.dtype)
                for v in optimizer.variables
                if len(v.shape) > 0
            }


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_two_stages(dtype):
    reference = train(new_model("float32"), Dtypes())
    model, dtypes = new_model(dtype, initial_scale=8.0), Dtypes()
    before = {v.path: ops.convert_to_numpy(v) for v in model.trainable_variables}
    select = train(model, dtypes)
    narrow = {name for name, found in dtypes.found.items() if found != "float32"}
    assert narrow == ({"anchor"} if dtype == "bfloat16" else set())
    assert select.metadata["samples"] == reference.metadata["samples"] == 18
    for path, mask in select.mask.indices.items():
        variable = next(v for v in model.trainable_variables if v.path == path)
        now, old = ops.convert_to_numpy(variable).reshape(-1), before[path].reshape(-1)
        assert str(variable.dtype) == ("bfloat16" if dtype == "bfloat16" else "float32")
        frozen = np.ones(now.size, bool)
        frozen[mask] = False
        assert now[frozen].tobytes() == old[frozen].tobytes()
        assert np.isfinite(now.astype("float32")).all()
    for path, scores in select.scores.items():
        assert scores.dtype == "float32"
        assert (scores > 0).all()
        wide = reference.scores[path]
        assert abs(np.log(scores).mean() - np.log(wide).mean()) < 0.01, path


def test_an_overflow_is_skipped_and_takes_no_sample():
    # Halved until the gradients fit: the first batches overflow.
    model = new_model("mixed_float16", initial_scale=2.0**40)
    x, y = new_data()
    optimizer = model.optimizer.inner_optimizer
    before = [ops.convert_to_numpy(v).tobytes() for v in model.trainable_variables]
    model.fit(x[:8], y[:8], batch_size=4, shuffle=False, verbose=0)
    assert (optimizer.num_updates, optimizer.num_samples) == (0, 0)
    now = [ops.convert_to_numpy(v).tobytes() for v in model.trainable_variables]
    assert now == before
    scale = float(ops.convert_to_numpy(model.optimizer.dynamic_scale))
    assert scale == 2.0**38
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, epochs=4)
    scale = float(ops.convert_to_numpy(model.optimizer.dynamic_scale))
    overflows = round(38 - np.log2(scale))  # it grows after 2000 good batches only
    updates = 4 * 12 - overflows
    assert 0 < overflows < 40
    assert optimizer.num_updates == updates
    assert optimizer.num_samples == max(updates - 6, 0) > 0
    assert optimizer.skipped_steps == 0  # Keras's wrapper does not ask it
    assert all(
        np.isfinite(ops.convert_to_numpy(v)).all() for v in model.trainable_variables
    )


def test_one_overflow_leaves_no_trace():
    """The run is that without the batch, but for the loss scale."""
    x, y = new_data()
    bad = x.copy()
    bad[29] = np.inf  # in the eighth batch of twelve, a sample step
    good = np.delete(np.arange(len(x)), np.arange(28, 32))
    found = []
    for data, labels in ((bad, y), (x[good], y[good])):
        model = new_model("mixed_float16", initial_scale=8.0)
        model.fit(data, labels, batch_size=4, shuffle=False, verbose=0)
        optimizer = model.optimizer.inner_optimizer
        assert (optimizer.num_updates, optimizer.num_samples) == (11, 5)
        found.append([ops.convert_to_numpy(v) for v in model.trainable_variables])
        found[-1] += optimizer.posterior_scales().values()
    for one, other in zip(*found, strict=True):
        # Another scale rounds float16 alike unless numbers are subnormal.
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
