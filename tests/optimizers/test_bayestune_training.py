"""Stage 1 in `fit`, saved and resumed, stateless, compiled and eager."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, JointLangevin
from keras_bayestune.updates.elementwise import SMALLEST_COMPILED

# They look at the optimizer alone, and read its scales themselves.
pytestmark = pytest.mark.filterwarnings("ignore:`fit` with BayesTuneSGLD ended")

BACKEND = keras.backend.backend()
FEATURES, BATCHES, BATCH = 4, 8, 2


def new_data(batches=BATCHES):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batches * BATCH, FEATURES)).astype("float32")
    return x, (x[:, :2] * x[:, 2:]).astype("float32")


def new_model(optimizer, dtype=None, **compile_arguments):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(3, activation="tanh", name="body", dtype=dtype),
            keras.layers.Dense(2, name="head", dtype=dtype),
        ]
    )
    model.compile(optimizer, loss="mse", **compile_arguments)
    return model


def new_optimizer(**arguments):
    arguments = {
        "warmup_steps": 2,
        "burn_in_steps": 3,
        "thinning": 2,
        "exclude": "head",
        "seed": 3,
        **arguments,
    }
    return BayesTuneSGLD(1e-2, **arguments)


def fit(model, x, y, epochs=1):
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, epochs=epochs)
    return model


def bits(variables):
    return [ops.convert_to_numpy(v).tobytes() for v in variables]


def assert_same_run(model, expected, rtol=1e-4, atol=1e-6):
    for one, other in zip(model.variables, expected.variables, strict=True):
        one, other = map(ops.convert_to_numpy, (one, other))
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)
    one, other = model.optimizer, expected.optimizer
    assert one.num_updates == other.num_updates
    assert one.num_samples == other.num_samples > 0
    scales = other.posterior_scales()
    for path, scale in one.posterior_scales().items():
        np.testing.assert_allclose(scale, scales[path], rtol=rtol, atol=atol)


WAYS = {"run_eagerly": {"run_eagerly": True}}
if BACKEND != "torch":  # which always runs eagerly, one step at a time
    WAYS["jit_compile"] = {"jit_compile": True}
    WAYS["no jit_compile"] = {"jit_compile": False}
    WAYS["steps_per_execution"] = {"steps_per_execution": 3}


def test_every_way_of_running_gives_the_same():
    data = new_data()
    expected = fit(new_model(new_optimizer(weight_decay=0.1, use_ema=True)), *data)
    assert expected.optimizer.num_updates == BATCHES
    for arguments in WAYS.values():
        optimizer = new_optimizer(weight_decay=0.1, use_ema=True)
        assert_same_run(fit(new_model(optimizer, **arguments), *data), expected)


@pytest.mark.parametrize("sampler", [None, JointLangevin()], ids=["default", "joint"])
def test_accumulated_gradients_make_one_update(sampler):
    x, y = new_data()
    options = {"sampler": sampler, "burn_in_steps": 2, "thinning": 1}
    accumulated = fit(
        new_model(new_optimizer(gradient_accumulation_steps=2, **options)), x, y
    )
    whole = new_model(new_optimizer(**options))
    whole.fit(x, y, batch_size=2 * BATCH, shuffle=False, verbose=0)
    assert accumulated.optimizer.num_updates == BATCHES // 2
    assert_same_run(accumulated, whole)


@pytest.mark.parametrize("steps", [None, 2], ids=["plain", "accumulated"])
def test_a_batch_that_is_not_finite_is_skipped(steps):
    x, y = new_data()
    bad_x = x.copy()
    bad_x[2 * BATCH + 1, 0] = np.nan  # the third of eight batches
    good = np.ones(len(x), bool)
    good[2 * BATCH : (4 if steps else 3) * BATCH] = False
    optimizers = [
        new_optimizer(gradient_accumulation_steps=steps, burn_in_steps=2, thinning=1)
        for _ in range(2)
    ]
    model = fit(new_model(optimizers[0]), bad_x, y)
    expected = fit(new_model(optimizers[1]), x[good], y[good])
    assert (optimizers[0].skipped_steps, optimizers[1].skipped_steps) == (1, 0)
    assert_same_run(model, expected)


def test_embeddings_train_like_a_product_with_one_hot_rows():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 5, size=(16, 3))  # the sixth row gets no gradient
    y = rng.normal(size=(16, 3, 2)).astype("float32")
    table = rng.normal(size=(6, 2)).astype("float32")
    found = []
    for x, layer in (
        (tokens, keras.layers.Embedding(6, 2, name="table")),
        (np.eye(6)[tokens], keras.layers.Dense(2, use_bias=False, name="table")),
    ):
        inputs = keras.Input(x.shape[1:])
        model = keras.Model(inputs, layer(inputs))
        layer.set_weights([table])
        optimizer = new_optimizer(exclude=())
        model.compile(optimizer, loss="mse")
        fit(model, x, y)
        found.append((layer.get_weights()[0], *optimizer.posterior_scales().values()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert (found[0][0][5] != table[5]).all()  # noise and prior act there, too


@pytest.mark.parametrize(
    ("first", "arguments"),
    [
        (1, {"seed": None, "use_ema": True}),
        (3, {"thinning": 1, "gradient_accumulation_steps": 2}),
        (5, {"sampler": JointLangevin(), "second_moment": True, "seed": 0}),
    ],
    ids=["warm-up", "half accumulated", "sampling"],
)
def test_a_saved_run_goes_on_as_if_nothing_happened(first, arguments, tmp_path):
    x, y = new_data()
    model = new_model(new_optimizer(**arguments))
    fit(model, x[: first * BATCH], y[: first * BATCH])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is BayesTuneSGLD
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert bits(loaded.optimizer.variables) == bits(model.optimizer.variables)
    for each in (model, loaded):
        fit(each, x[first * BATCH :], y[first * BATCH :])
    assert model.optimizer.num_samples > 0
    assert bits(loaded.variables) == bits(model.variables)
    assert bits(loaded.optimizer.variables) == bits(model.optimizer.variables)
    scales = [m.optimizer.posterior_scales().values() for m in (model, loaded)]
    for one, other in zip(*scales, strict=True):
        assert one.tobytes() == other.tobytes()


def test_two_fits_are_one_longer_fit():
    x, y = new_data()
    half = len(x) // 2
    whole = fit(new_model(new_optimizer()), x, y)
    halves = new_model(new_optimizer())
    fit(halves, x[:half], y[:half])
    fit(halves, x[half:], y[half:])
    assert bits(halves.variables) == bits(whole.variables)


def test_moving_averages_survive_a_second_fit():
    model = new_model(new_optimizer(use_ema=True, ema_momentum=0.5))
    fit(model, *new_data())
    average = bits(model.optimizer._model_variables_moving_average)
    assert bits(model.trainable_variables) == average
    fit(model, *new_data())
    assert bits(model.trainable_variables) != average


def test_a_weight_that_is_large_enough_to_be_compiled_for():
    """Its update is compiled on its own where the whole step is not."""
    runs = []
    for eagerly in (False, True):
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((256,)), keras.layers.Dense(256)])
        optimizer = new_optimizer(exclude=(), second_moment=True)
        model.compile(optimizer, loss="mse", run_eagerly=eagerly)
        assert model.layers[0].kernel.shape == (256, SMALLEST_COMPILED // 256)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, 8 * BATCH, 256)).astype("float32")
        runs.append(fit(model, *x))
        assert optimizer.num_samples == 2
    assert_same_run(*runs)


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="Keras has no stateless_apply on TensorFlow"
)
def test_stateless_apply():
    rng = np.random.default_rng(1)
    values = [rng.normal(size=shape).astype("float32") for shape in ((2, 3), (4,))]
    stateful = (
        new_optimizer(exclude=()),
        [keras.Variable(v, name=f"w{i}") for i, v in enumerate(values)],
    )
    stateless = (
        new_optimizer(exclude=()),
        [keras.Variable(v, name=f"w{i}") for i, v in enumerate(values)],
    )
    optimizer, weights = stateless
    optimizer.build(weights)
    # Copies: torch updates in place what it is given.
    weights = [ops.copy(w) for w in weights]
    state = [ops.copy(v) for v in optimizer.variables]
    for _ in range(6):
        grads = [
            ops.convert_to_tensor(rng.normal(size=v.shape), "float32") for v in values
        ]
        stateful[0].apply(grads, stateful[1])
        weights, state = optimizer.stateless_apply(state, grads, weights)
    assert optimizer.num_updates == 0  # nothing was stored
    assert bits(weights) == bits(stateful[1])
    assert bits(state) == bits(stateful[0].variables)
    for variable, value in zip(optimizer.variables, state, strict=True):
        variable.assign(value)
    assert optimizer.num_updates == 6
    assert optimizer.num_samples == stateful[0].num_samples == 1


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
def test_reduced_precision_in_fit(dtype):
    model = fit(new_model(new_optimizer(), dtype=dtype), *new_data())
    assert model.optimizer.num_samples == 2
    for scale in model.optimizer.posterior_scales().values():
        assert scale.dtype == "float32"
        assert np.isfinite(scale).all()
        assert (scale > 0).all()
