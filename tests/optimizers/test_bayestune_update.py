"""Updates of the sampler with the scalar metric against `math.md` in float64 NumPy."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, Collapsed, LaplacePrior
from keras_bayestune.noise import Rademacher, stream_keys
from keras_bayestune.samplers import ScalarMetric

# alpha = 0.5 has short closed forms, so nothing here leans on the Bessel code.
ALPHA, BETA = 0.5, 50.0
SHAPES = {"kernel": (2, 3), "bias": (4,), "head": (4,)}
UPDATES = 9
SCHEDULE = {"warmup_steps": 2, "burn_in_steps": 3, "thinning": 2}  # samples 5, 7, 9


def new_variables():
    rng = np.random.default_rng(1)
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=path)
        for path, shape in SHAPES.items()
    ]


def new_gradients(updates=UPDATES):
    rng = np.random.default_rng(2)
    return [
        [(3.0 * rng.normal(size=s)).astype("float32") for s in SHAPES.values()]
        for _ in range(updates)
    ]


def new_optimizer(learning_rate=0.01, **arguments):
    arguments = {
        "effective_size": 2000.0,
        "prior": LaplacePrior(ALPHA, BETA),
        "sampler": Collapsed(metric=ScalarMetric()),
        "exclude": "head",
        "seed": 5,
        **SCHEDULE,
        **arguments,
    }
    return BayesTuneSGLD(learning_rate, **arguments)


def as_float64(variables):
    return [np.array(ops.convert_to_numpy(v), "float64") for v in variables]


def global_norm_clip(limit):
    def clip(gradients):
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        return [g * min(1.0, limit / norm) for g in gradients]

    return clip


def norm_clip(limit):
    return lambda gradients: [
        g * min(1.0, limit / np.sqrt(np.sum(g**2))) for g in gradients
    ]


def expected_run(
    anchors,
    gradients,
    clip,
    learning_rate=lambda t: 0.01,
    size=2000.0,
    noise_scale=1.0,
    decay=0.0,
    after_update=lambda t, weights: weights,
):
    """Weights after each update, means of score and squared score, samples, N."""
    weights = [a.copy() for a in anchors]
    momentum, velocity, mean_square = 0.0, 0.0, 0.0
    means, squares, samples, trajectory = [0.0, 0.0], [0.0, 0.0], 0, []
    for t, raw in enumerate(gradients, start=1):
        g = clip([np.array(a, "float64") for a in raw])
        lr = learning_rate(t)
        scalars = np.concatenate([g[0].ravel(), g[1].ravel()])
        mean_square = 0.999 * mean_square + 0.001 * np.mean(scalars**2)
        s = mean_square / (1 - 0.999**t)
        h = lr / (np.sqrt(s) + 1e-5)
        if size == "auto" and t == SCHEDULE["warmup_steps"]:
            size = 2 / (h * s)
        weights = [w * (1 - lr * decay) for w in weights]
        d = [weights[i] - anchors[i] for i in (0, 1)]
        if t > SCHEDULE["warmup_steps"]:
            signs = ops.convert_to_numpy(
                Rademacher()(stream_keys(5, t, 0), (10,))
            )  # in a row
            for i, noise in enumerate((signs[:6].reshape(2, 3), signs[6:])):
                shrinkage = 0.5 + np.sqrt(BETA * np.abs(d[i]))
                factor = 1 - h * shrinkage / (size * np.maximum(d[i] ** 2, 1e-30))
                d[i] = d[i] * np.maximum(0, factor)
                d[i] += noise_scale * np.sqrt(2 * h / size) * noise
        d = [d[i] - h * g[i] for i in (0, 1)]
        momentum = 0.9 * momentum + 0.1 * g[2]
        velocity = 0.999 * velocity + 0.001 * g[2] ** 2
        root = np.sqrt(velocity / (1 - 0.999**t)) + 1e-8
        head = weights[2] - lr * momentum / (1 - 0.9**t) / root
        weights = [anchors[0] + d[0], anchors[1] + d[1], head]
        past = t - SCHEDULE["burn_in_steps"]
        if past > 0 and past % SCHEDULE["thinning"] == 0:
            samples += 1
            for i in (0, 1):
                score = np.sqrt(np.abs(d[i]) / BETA)
                means[i] = means[i] + (score - means[i]) / samples
                squares[i] = squares[i] + (score**2 - squares[i]) / samples
        weights = after_update(t, weights)
        trajectory.append([w.copy() for w in weights])
    return trajectory, means, squares, samples, size


SCHEDULED = keras.optimizers.schedules.ExponentialDecay(0.02, 1, 0.8)
CASES = {
    "default": ({}, {"clip": global_norm_clip(1.0)}),
    "global_clipnorm": ({"global_clipnorm": 3.0}, {"clip": global_norm_clip(3.0)}),
    "no clipping": ({"global_clipnorm": None}, {"clip": lambda g: g}),
    "clipnorm": ({"clipnorm": 2.0}, {"clip": norm_clip(2.0)}),
    "clipvalue": (
        {"clipvalue": 1.5},
        {"clip": lambda g: [np.clip(a, -1.5, 1.5) for a in g]},
    ),
    "weight_decay": (
        {"weight_decay": 0.6},
        {"clip": global_norm_clip(1.0), "decay": 0.6},
    ),
    "schedule": (
        {"learning_rate": SCHEDULED},
        {
            "clip": global_norm_clip(1.0),
            "learning_rate": lambda t: 0.02 * 0.8 ** (t - 1),
        },
    ),
    "callable": (
        {"learning_rate": lambda: 0.03},
        {"clip": global_norm_clip(1.0), "learning_rate": lambda t: 0.03},
    ),
    "noise scale": (
        {"noise_scale": 0.3},
        {"clip": global_norm_clip(1.0), "noise_scale": 0.3},
    ),
    "no noise": (
        {"noise_scale": 0.0},
        {"clip": global_norm_clip(1.0), "noise_scale": 0.0},
    ),
    "auto": (
        {"effective_size": "auto"},
        {"clip": global_norm_clip(1.0), "size": "auto", "noise_scale": 0.1},
    ),
    "auto, all noise": (
        {"effective_size": "auto", "noise_scale": 1.0},
        {"clip": global_norm_clip(1.0), "size": "auto"},
    ),
}


def run_and_compare(optimizer, expectation, gradient_scale=1.0):
    variables = new_variables()
    gradients = new_gradients()
    trajectory, means, squares, samples, size = expected_run(
        as_float64(variables), gradients, **expectation
    )
    for raw, expected in zip(gradients, trajectory, strict=True):
        scaled = [ops.convert_to_tensor(g * gradient_scale) for g in raw]
        optimizer.apply(scaled, variables)
        for variable, value in zip(variables, expected, strict=True):
            np.testing.assert_allclose(
                ops.convert_to_numpy(variable), value, rtol=0, atol=2e-6
            )
    assert optimizer.num_samples == samples == 3
    assert optimizer.num_updates == UPDATES
    scales = optimizer.posterior_scales()
    assert list(scales) == ["kernel", "bias"]
    for scale, mean in zip(scales.values(), means, strict=True):
        assert scale.dtype == "float32"
        np.testing.assert_allclose(scale, mean, rtol=2e-4)
    if optimizer.second_moment:
        found = optimizer.posterior_second_moments().values()
        for moment, expected in zip(found, squares, strict=True):
            np.testing.assert_allclose(moment, expected, rtol=4e-4)
    np.testing.assert_allclose(optimizer.current_effective_size(), size, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_updates_follow_the_equations(case):
    arguments, expectation = CASES[case]
    second_moment = case == "default"
    optimizer = new_optimizer(**arguments, second_moment=second_moment)
    run_and_compare(optimizer, expectation)


def test_loss_scale_factor_divides_the_gradients():
    optimizer = new_optimizer(loss_scale_factor=64.0)
    assert float(optimizer.scale_loss(2.0)) == 128.0
    run_and_compare(optimizer, {"clip": global_norm_clip(1.0)}, gradient_scale=64.0)


@pytest.mark.parametrize("frequency", [None, 4])
def test_moving_average_of_the_weights(frequency):
    average = [None] * len(SHAPES)

    def after_update(t, weights):
        for i, weight in enumerate(weights):
            average[i] = weight if t == 1 else 0.7 * average[i] + 0.3 * weight
        return list(average) if frequency and t % frequency == 0 else weights

    optimizer = new_optimizer(
        use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=frequency
    )
    expectation = {"clip": global_norm_clip(1.0), "after_update": after_update}
    run_and_compare(optimizer, expectation)
    variables = optimizer._trainable_variables
    optimizer.finalize_variable_values(variables)
    for variable, expected in zip(variables, average, strict=True):
        found = ops.convert_to_numpy(variable)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_weight_decay_spares_what_was_excluded_from_it():
    decayed, spared = new_optimizer(weight_decay=0.6), new_optimizer(weight_decay=0.6)
    spared.exclude_from_weight_decay(var_names=["bias"])
    plain = new_optimizer()
    values = []
    for optimizer in (decayed, spared, plain):
        variables = new_variables()
        for gradients in new_gradients(2):
            optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
        values.append([ops.convert_to_numpy(v) for v in variables])
    # To rounding: weights of unequal decay are not updated as one array.
    np.testing.assert_allclose(values[1][0], values[0][0], rtol=2e-7)
    np.testing.assert_allclose(values[1][1], values[2][1], rtol=2e-7)
    assert np.abs(values[0][1] - values[2][1]).max() > 1e-3
    np.testing.assert_allclose(values[1][2], values[0][2], rtol=2e-7)


@pytest.mark.parametrize("warmup, burn_in, thinning", [(0, 0, 1), (2, 5, 3), (3, 3, 2)])
def test_warmup_burn_in_and_thinning_count_updates_from_one(warmup, burn_in, thinning):
    optimizer = BayesTuneSGLD(
        0.01, warmup_steps=warmup, burn_in_steps=burn_in, thinning=thinning, seed=0
    )
    assert optimizer.phase == ("warm-up" if warmup else "sampling")
    variable = keras.Variable(np.ones(4, "float32"), name="w")
    gradient = ops.convert_to_tensor(np.ones(4, "float32"))
    samples = 0
    for t in range(1, 13):
        phase = "warm-up" if t <= warmup else "burn-in" if t <= burn_in else "sampling"
        assert optimizer.phase == phase
        before = (
            optimizer.posterior_scales()["w"] if optimizer.num_samples else np.zeros(4)
        )
        optimizer.apply([gradient], [variable])
        is_sample = t > burn_in and (t - burn_in) % thinning == 0
        samples += is_sample
        assert (optimizer.num_updates, optimizer.num_samples) == (t, samples)
        if samples:
            changed = (optimizer.posterior_scales()["w"] != before).any()
            assert changed == is_sample


def test_the_last_update_of_warmup_measures_the_effective_size():
    optimizer = BayesTuneSGLD(0.01, warmup_steps=2, burn_in_steps=4, seed=0)
    variable = keras.Variable(np.ones(4, "float32"), name="w")
    assert optimizer.current_effective_size() is None
    sizes = []
    for t in range(1, 5):
        gradient = np.full(4, 0.1 * t, "float32")
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        sizes.append(optimizer.current_effective_size())
    # rms of the gradients 0.1 and 0.2, bias-corrected
    mean_square = (0.999 * 0.1**2 + 0.2**2) * 0.001 / (1 - 0.999**2)
    rms = np.sqrt(mean_square)
    assert sizes[0] is None
    np.testing.assert_allclose(
        sizes[1:], 2 / (0.01 * rms) * (1 + 1e-5 / rms), rtol=1e-5
    )


def test_a_weight_without_gradient_stays():
    variables = new_variables()
    optimizer = new_optimizer()
    before = [ops.convert_to_numpy(v).copy() for v in variables]
    for gradients in new_gradients():
        tensors = [ops.convert_to_tensor(g) for g in gradients]
        with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
            optimizer.apply([tensors[0], None, tensors[2]], variables)
    now = [ops.convert_to_numpy(v) for v in variables]
    assert (now[0] != before[0]).all()
    assert now[1].tobytes() == before[1].tobytes()
    assert (now[2] != before[2]).all()
    scales = optimizer.posterior_scales()
    assert (scales["kernel"] > 0).all()
    assert not scales["bias"].any()  # never first in a mask


def test_a_change_from_outside_is_a_displacement():
    variables = new_variables()
    optimizer = new_optimizer(effective_size=1e16)
    gradients = [ops.zeros(shape) for shape in SHAPES.values()]
    optimizer.apply(gradients, variables)
    anchor = ops.convert_to_numpy(variables[0]).copy()
    variables[0].assign(anchor + 0.5)
    for _ in range(5):
        optimizer.apply(gradients, variables)
    np.testing.assert_array_equal(optimizer.anchors()["kernel"], anchor)
    expected = np.full((2, 3), np.sqrt(0.5 / BETA))
    np.testing.assert_allclose(
        optimizer.posterior_scales()["kernel"], expected, rtol=1e-4
    )
