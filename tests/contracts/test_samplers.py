"""What holds for every sampler and metric; a new one is a row."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import BayesTuneSGLD, samplers
from keras_bayestune.noise import Gaussian, Rademacher
from keras_bayestune.samplers import (
    Authors,
    Collapsed,
    IdentityMetric,
    JointLangevin,
    PartiallyAdaptiveMetric,
    ScalarMetric,
    TensorMetric,
)
from tests.contracts.tiny import bits, concrete_subclasses, fit, new_model

# These runs are about the samples: no mask is wanted.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`fit` with BayesTuneSGLD ended without SparseMaskCallback:UserWarning"
)

METRICS = {
    "IdentityMetric": IdentityMetric(),
    "PartiallyAdaptiveMetric": PartiallyAdaptiveMetric(),
    "ScalarMetric": ScalarMetric(),
    "TensorMetric": TensorMetric(),
}
SAMPLERS = {
    "Authors": Authors(),
    "Collapsed": Collapsed(),
    "JointLangevin": JointLangevin(),
}
# Each metric and each noise under the default sampler, and each sampler.
RULES = {
    **SAMPLERS,
    **{name: Collapsed(metric=metric) for name, metric in METRICS.items()},
    "Gaussian": Collapsed(noise=Gaussian()),
    "Rademacher": Collapsed(noise=Rademacher()),
}


def optimizer(rule, seed=5, **arguments):
    steps = {"warmup_steps": 2, "burn_in_steps": 4, "thinning": 2, **arguments}
    return BayesTuneSGLD(1e-2, sampler=RULES[rule], seed=seed, **steps)


def test_every_sampler_and_metric_has_a_row():
    assert SAMPLERS.keys() == concrete_subclasses(samplers, samplers.Sampler)
    assert METRICS.keys() == concrete_subclasses(samplers, samplers.Metric)


@pytest.mark.parametrize("rule", RULES)
def test_is_a_value_with_a_configuration(rule):
    config = keras.saving.serialize_keras_object(RULES[rule])
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(RULES[rule])
    assert keras.saving.serialize_keras_object(again) == config


@pytest.mark.parametrize("rule", RULES)
def test_trains_and_samples(rule):
    model = new_model(optimizer(rule))
    before = bits(model.trainable_variables)
    losses = fit(model, epochs=8).history["loss"]
    after = bits(model.trainable_variables)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert not set(before) & set(after)
    assert model.optimizer.num_samples == (32 - 4) // 2
    scales = model.optimizer.posterior_scales()
    assert {path: scale.shape for path, scale in scales.items()} == {
        v.path: tuple(v.shape) for v in model.trainable_variables
    }
    for scale in scales.values():
        assert scale.dtype == np.float32
        assert np.isfinite(scale).all()
        assert (scale > 0).all()


@pytest.mark.parametrize("rule", RULES)
def test_one_seed_repeats_and_another_does_not(rule):
    runs = []
    for seed in (5, 5, 6):
        model = new_model(optimizer(rule, seed=seed))
        fit(model)
        runs.append(bits(model.trainable_variables))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("rule", RULES)
def test_warm_up_knows_neither_prior_nor_noise(rule):
    ends = []
    for seed in (5, 6):
        model = new_model(
            optimizer(rule, seed=seed, warmup_steps=100, burn_in_steps=100)
        )
        fit(model)
        ends.append(bits(model.trainable_variables))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("rule", RULES)
def test_a_saved_state_goes_on_to_the_same_bits(rule, tmp_path):
    through = new_model(optimizer(rule))
    fit(through, epochs=2)
    through.save(tmp_path / "model.keras")
    fit(through, epochs=2)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fit(loaded, epochs=2)
    assert bits(loaded.trainable_variables) == bits(through.trainable_variables)
    one, two = (m.optimizer.posterior_scales() for m in (loaded, through))
    np.testing.assert_equal(list(one.values()), list(two.values()))


@pytest.mark.parametrize("name", METRICS)
def test_step_sizes_are_finite_at_the_ends_of_a_float(name):
    squares = ops.convert_to_tensor(np.array([1e-30, 1.0, 1e30], "float32"))
    metric = METRICS[name]
    pooled = metric.pool([squares[i] for i in range(3)], [4.0, 1.0, 0.0])
    assert tuple(pooled.shape) == ((3,) if metric.per_tensor else ())
    step_size = ops.convert_to_numpy(metric.step_size(1e-3, squares))
    assert np.isfinite(step_size).all()
    assert (step_size > 0).all()
