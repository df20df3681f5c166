"""Arguments, configuration and errors of the stage-1 optimizer."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import (
    Authors,
    BayesTuneSGLD,
    Collapsed,
    JointLangevin,
    LaplacePrior,
    WithPrior,
)
from keras_bayestune.noise import Gaussian, Noise, Rademacher
from keras_bayestune.samplers import IdentityMetric, ScalarMetric, TensorMetric


def weights(*names, shape=(4,)):
    return [keras.Variable(np.ones(shape, "float32"), name=name) for name in names]


BAD_VALUES = [
    (
        "effective_size",
        0,
        r'a finite number above 0\. Received: effective_size=0 .* Or "auto"',
    ),
    ("effective_size", -1.0, "effective_size=-1.0 .* Larger values mean less noise"),
    ("effective_size", np.inf, "effective_size=inf"),
    ("effective_size", np.nan, "effective_size=nan"),
    ("effective_size", "big", "effective_size='big'"),
    ("noise_scale", -0.1, r"finite number >= 0\. .* noise_scale=-0\.1 .* 1 samples"),
    ("noise_scale", np.inf, "noise_scale=inf"),
    ("noise_scale", np.nan, "noise_scale=nan"),
    ("noise_scale", "auto", "noise_scale='auto' .* None takes what suits"),
    (
        "warmup_steps",
        -1,
        "`warmup_steps` must be an integer >= 0",
    ),
    ("warmup_steps", 2.5, "warmup_steps=2.5"),
    ("warmup_steps", True, "warmup_steps=True"),
    ("warmup_steps", "10", "warmup_steps='10'"),
    ("burn_in_steps", -1, "`burn_in_steps` must be an integer"),
    ("burn_in_steps", 2**31, "burn_in_steps=2147483648"),
    (
        "burn_in_steps",
        99,
        r"must not be smaller than `warmup_steps`.*steps=99, warmup_",
    ),
    ("thinning", 0, "`thinning` must be an integer >= 1. .*thinning=0"),
    ("seed", -1, "`seed` must be an integer"),
    ("seed", 2**31, "seed=2147483648"),
    ("seed", 0.5, "seed=0.5 of type float"),
    ("learning_rate", 1, "`learning_rate` should be float"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_VALUES)
def test_bad_values(name, value, message):
    arguments = {"learning_rate": 1e-3, name: value}
    with pytest.raises(ValueError, match=message):
        BayesTuneSGLD(**arguments)


def test_boundary_values():
    optimizer = BayesTuneSGLD(
        1e-3,
        effective_size=1e-30,
        noise_scale=0,
        warmup_steps=0,
        burn_in_steps=0,
        thinning=np.int64(1),
        seed=2**31 - 1,
    )
    assert (optimizer.thinning, optimizer.seed) == (1, 2**31 - 1)
    optimizer.build(weights("w"))
    assert (optimizer.phase, optimizer.num_updates) == ("sampling", 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("prior", 0.01, r"`prior` must be a LaplacePrior, .* 0\.01 of type float"),
        ("sampler", "collapsed", r"`sampler` must be a Sampler, .* of type str"),
        ("sampler", Collapsed, r"such as Collapsed\(\)\. Received: .* of type type"),
    ],
)
def test_bad_types(name, value, message):
    with pytest.raises(TypeError, match=message):
        BayesTuneSGLD(1e-3, **{name: value})


def test_two_ways_of_clipping_are_refused():
    with pytest.raises(ValueError, match="Only one of `clipnorm`"):
        BayesTuneSGLD(1e-3, clipnorm=1.0, global_clipnorm=1.0)


@pytest.mark.parametrize(
    ("arguments", "clipping"),
    [
        ({}, (None, None, 1.0)),
        ({"clipnorm": 2.0}, (2.0, None, None)),
        ({"clipvalue": 2.0}, (None, 2.0, None)),
        ({"global_clipnorm": 2.0}, (None, None, 2.0)),
        ({"global_clipnorm": None}, (None, None, None)),
    ],
)
def test_clips_to_a_global_norm_of_one_unless_told(arguments, clipping):
    optimizer = BayesTuneSGLD(1e-3, **arguments)
    found = (optimizer.clipnorm, optimizer.clipvalue, optimizer.global_clipnorm)
    assert found == clipping


def test_no_trainable_variables():
    with pytest.raises(ValueError, match="no trainable variables. Build the model"):
        BayesTuneSGLD(1e-3).build([])


def test_exclude_that_matches_nothing():
    optimizer = BayesTuneSGLD(1e-3, exclude=["head", "decoder"])
    message = "'decoder' in `exclude` matches none of the 2 .* body, head"
    with pytest.raises(ValueError, match=message):
        optimizer.build(weights("body", "head"))
    assert not optimizer.built
    assert not [v for v in optimizer.variables if "body" in v.path]


def test_exclude_that_leaves_nothing():
    with pytest.raises(
        ValueError, match="None of the 2 trainable .* Leave at least one"
    ):
        BayesTuneSGLD(1e-3, exclude=".").build(weights("body", "head"))


def test_variables_of_one_path():
    optimizer = BayesTuneSGLD(1e-3, exclude="#2$")
    optimizer.build(weights("w", "w", "w"))
    assert list(optimizer.anchors()) == ["w", "w#3"]
    assert optimizer.excluded_paths() == ("w#2",)


@pytest.mark.parametrize("exclude", ["head", ["head"], ("^head$", "he[a]d")])
def test_exclude_is_a_pattern_or_several(exclude):
    optimizer = BayesTuneSGLD(1e-3, exclude=exclude)
    optimizer.build(weights("body", "head"))
    assert optimizer.excluded_paths() == ("head",)
    assert list(optimizer.anchors()) == ["body"]


def test_with_prior_says_which_weights_carry_which_prior():
    one, other = LaplacePrior(alpha=0.5), LaplacePrior(alpha=2.0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            one.wrap(keras.layers.Dense(3, name="a")),
            other.wrap(keras.layers.Dense(3, name="b", use_bias=False)),
            WithPrior(keras.layers.Dense(3, name="c"), None),
            keras.layers.Dense(3, name="head"),
        ]
    )
    optimizer = BayesTuneSGLD(1e-3, prior=LaplacePrior(alpha=9.0), exclude="bias")
    optimizer.build(model.trainable_variables)
    priors = {
        "/".join(weight.path.split("/")[-2:]): block.prior
        for block in optimizer._blocks
        for weight in block.weights
    }
    assert {path: prior for path, prior in priors.items() if prior} == {
        "a/kernel": one,
        "b/kernel": other,
    }


def test_anchors_follow_the_weights_until_the_first_update():
    (weight,) = weights("w")
    optimizer = BayesTuneSGLD(1e-3)
    optimizer.build([weight])
    weight.assign([1.0, 2.0, 3.0, 4.0])
    optimizer.reset_anchors()
    assert optimizer.anchors()["w"].tolist() == [1.0, 2.0, 3.0, 4.0]
    weight.assign([0.0, 0.0, 0.0, 0.0])
    assert optimizer.anchors()["w"].tolist() == [1.0, 2.0, 3.0, 4.0]  # a copy
    optimizer.apply([ops.ones((4,))], [weight])
    with pytest.raises(ValueError, match="cannot be reset after 1 updates"):
        optimizer.reset_anchors()


def test_second_moment_must_be_asked_for():
    optimizer = BayesTuneSGLD(1e-3)
    optimizer.build(weights("w"))
    with pytest.raises(ValueError, match="second_moment=True"):
        optimizer.posterior_second_moments()
    optimizer = BayesTuneSGLD(1e-3, second_moment=True)
    optimizer.build(weights("w"))
    with pytest.raises(ValueError, match="No posterior sample was taken: 0 updates"):
        optimizer.posterior_second_moments()


@keras.saving.register_keras_serializable(package="test_bayestune_arguments")
class SomeNoise(Noise):
    def __init__(self, level=1.0):
        self.level = level

    def get_config(self):
        return {"level": self.level}


SAMPLERS = [
    Collapsed(),
    Collapsed(metric=TensorMetric(), noise=Gaussian()),
    JointLangevin(scale_step_size=0.03, metric=IdentityMetric()),
    Authors(scale_learning_rate=0.02, noise=Rademacher()),
    Collapsed(metric=ScalarMetric(), noise=SomeNoise(0.5)),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_configuration_round_trip(sampler):
    optimizer = BayesTuneSGLD(
        keras.optimizers.schedules.CosineDecay(1e-3, 100),
        effective_size=123.0,
        prior=LaplacePrior(alpha=0.2, beta=3.0, scale_init=0.5),
        sampler=sampler,
        noise_scale=0.5,
        warmup_steps=3,
        burn_in_steps=4,
        thinning=7,
        exclude=["head", "bias$"],
        seed=11,
        second_moment=True,
        weight_decay=0.1,
        clipvalue=0.5,
        use_ema=True,
        ema_momentum=0.8,
        ema_overwrite_frequency=5,
        loss_scale_factor=2.0,
        gradient_accumulation_steps=3,
        name="stage_one",
    )
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(config)
    assert type(again) is BayesTuneSGLD
    assert again.get_config() == optimizer.get_config()
    assert type(again.sampler) is type(sampler)
    assert type(again.sampler.metric) is type(sampler.metric)
    assert type(again.sampler.noise) is type(sampler.noise)
    assert again.prior == optimizer.prior
    assert again.exclude == ("head", "bias$")


@pytest.mark.parametrize("clipping", [{}, {"clipnorm": 2.0}, {"global_clipnorm": None}])
def test_configuration_keeps_the_clipping(clipping):
    optimizer = BayesTuneSGLD(1e-3, **clipping)
    again = BayesTuneSGLD.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


def test_defaults():
    config = BayesTuneSGLD(1e-3).get_config()
    found = {
        k: config[k] for k in ("effective_size", "noise_scale", "thinning", "seed")
    }
    assert found == {
        "effective_size": "auto",
        "noise_scale": 0.1,
        "thinning": 5,
        "seed": None,
    }
    assert (config["warmup_steps"], config["burn_in_steps"]) == (100, 200)
    assert config["prior"]["config"] == LaplacePrior().get_config()
    assert config["sampler"]["class_name"] == "Collapsed"
    metric = config["sampler"]["config"]["metric"]
    assert metric["class_name"] == "PartiallyAdaptiveMetric"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, 0.1),
        ({"effective_size": 1e5}, 1.0),  # a posterior that the user states
        ({"sampler": JointLangevin()}, 1.0),  # as published
        ({"sampler": Authors()}, 1.0),
        ({"noise_scale": 0.4}, 0.4),
        ({"noise_scale": 0.4, "effective_size": 1e5}, 0.4),
    ],
)
def test_noise_scale(arguments, expected):
    optimizer = BayesTuneSGLD(1e-3, **arguments)
    assert optimizer.noise_scale == expected
    assert BayesTuneSGLD.from_config(optimizer.get_config()).noise_scale == expected


class Store(dict):
    """What Keras hands to `save_own_variables`."""


def state_of(optimizer, *names, shape=(4,)):
    store = Store()
    optimizer.build(weights(*names, shape=shape))
    optimizer.save_own_variables(store)
    return store


def test_a_state_of_more_variables_is_refused():
    store = state_of(BayesTuneSGLD(1e-3, sampler=JointLangevin()), "a", "b")
    optimizer = BayesTuneSGLD(1e-3, sampler=Collapsed(metric=ScalarMetric()))
    optimizer.build(weights("a", "b"))
    message = (
        r"does not belong to this BayesTuneSGLD: it has \d+ variables instead of \d+\. "
        "It was saved with another model or with other arguments"
    )
    with pytest.raises(ValueError, match=message):
        optimizer.load_own_variables(store)


def test_a_state_of_other_shapes_is_refused():
    store = state_of(BayesTuneSGLD(1e-3), "a", shape=(5,))
    optimizer = BayesTuneSGLD(1e-3)
    optimizer.build(weights("a"))
    message = r"it has shape \(5,\) instead of \(4,\) for \S*a_anchor"
    with pytest.raises(ValueError, match=message):
        optimizer.load_own_variables(store)


def test_a_state_before_build_is_refused():
    store = state_of(BayesTuneSGLD(1e-3), "a")
    with pytest.raises(ValueError, match="Build model and optimizer as they were"):
        BayesTuneSGLD(1e-3).load_own_variables(store)


def test_its_own_state_is_taken():
    optimizer = BayesTuneSGLD(1e-3, seed=4)
    store = state_of(optimizer, "a", "b")
    again = BayesTuneSGLD(1e-3, seed=5)
    again.build(weights("a", "b"))
    again.load_own_variables(store)
    for one, other in zip(optimizer.variables, again.variables, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (one, other)))
