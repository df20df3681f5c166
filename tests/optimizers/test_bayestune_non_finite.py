"""A gradient that is not finite: the update is skipped and counted, nothing else."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune import Authors, BayesTuneSGLD, Collapsed, JointLangevin

SHAPES = {"kernel": (2, 3), "bias": (4,), "head": (4,)}
UPDATES = 8


def new_variables():
    rng = np.random.default_rng(1)
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=path)
        for path, shape in SHAPES.items()
    ]


def new_gradients(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in SHAPES.values()]


def bits(variables):
    return {v.path: ops.convert_to_numpy(v).tobytes() for v in variables}


def run(bad=None, at=(), place=0, **arguments):
    """Variables and optimizer after UPDATES good gradients, bad ones in between."""
    optimizer = BayesTuneSGLD(
        0.01,
        warmup_steps=2,
        burn_in_steps=3,
        thinning=2,
        exclude="head",
        weight_decay=0.1,
        seed=5,
        second_moment=True,
        **arguments,
    )
    variables = new_variables()
    for t in range(UPDATES):
        if t in at:
            gradients = new_gradients(100)
            gradients[place].flat[1] = bad
            before = bits(optimizer.variables + variables)
            skipped = optimizer.skipped_steps
            optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
            after = bits(optimizer.variables + variables)
            changed = {p.split("/")[-1] for p in after if after[p] != before.get(p)}
            if before.keys() == after.keys():  # not the update that builds
                counters = {"iteration", "skipped_count"}
                averages = {f"{path}_average" for path in SHAPES}
                assert changed == counters | (averages if optimizer.use_ema else set())
            assert optimizer.skipped_steps == skipped + 1
        optimizer.apply([ops.convert_to_tensor(g) for g in new_gradients(t)], variables)
    return variables, optimizer


CASES = {
    "default clipping, nan": {"bad": np.nan},
    "default clipping, inf": {"bad": np.inf},
    "excluded variable": {"bad": np.nan, "place": 2},
    "no clipping": {"bad": -np.inf, "global_clipnorm": None},
    "clipnorm": {"bad": np.inf, "clipnorm": 1.0},
    "clipvalue": {"bad": np.inf, "clipvalue": 1.0, "place": 1},
    "scaled": {"bad": np.inf, "loss_scale_factor": 8.0},
    "joint": {"bad": np.nan, "sampler": JointLangevin()},
    "authors": {"bad": np.nan, "sampler": Authors()},
}


@pytest.mark.parametrize("case", CASES)
def test_a_skipped_update_leaves_no_trace(case):
    arguments = CASES[case]
    good = {k: v for k, v in arguments.items() if k not in ("bad", "place")}
    variables, optimizer = run(at=(0, 2, 5, 7), **arguments)
    expected_variables, expected = run(**good)
    assert optimizer.skipped_steps == 4
    assert (optimizer.num_updates, optimizer.num_samples) == (UPDATES, 2)
    assert (expected.num_updates, expected.num_samples) == (UPDATES, 2)
    assert bits(variables) == bits(expected_variables)
    counters = ("iteration", "skipped_count")
    after, wanted = (
        [
            ops.convert_to_numpy(v).tobytes()
            for v in o.variables
            if v.name not in counters
        ]
        for o in (optimizer, expected)
    )
    assert after == wanted


def test_a_constraint_leaves_a_skipped_update_alone():
    """It rounds the weights anew whenever it is applied."""
    rng = np.random.default_rng(1)
    shapes = {"kernel": (2, 3), "head": (3, 2)}
    variables = [
        keras.Variable(rng.normal(size=s).astype("float32"), name=n)
        for n, s in shapes.items()
    ]
    for variable in variables:
        variable.constraint = keras.constraints.MaxNorm(0.3)
    optimizer = BayesTuneSGLD(
        0.01, warmup_steps=0, burn_in_steps=0, thinning=1, exclude="head", seed=5
    )
    good = [ops.ones(shape) for shape in shapes.values()]
    before = bits(variables)
    optimizer.apply([g * np.nan for g in good], variables)
    assert (bits(variables), optimizer.skipped_steps) == (before, 1)
    optimizer.apply(good, variables)
    for variable in variables:
        norms = np.linalg.norm(ops.convert_to_numpy(variable), axis=0)
        np.testing.assert_array_less(norms, 0.3001)
    before = bits(variables)
    optimizer.apply([g * np.nan for g in good], variables)
    assert (bits(variables), optimizer.skipped_steps) == (before, 2)


def test_a_skipped_update_does_not_poison_the_moving_average():
    variables, optimizer = run(bad=np.nan, at=(2,), use_ema=True)
    optimizer.finalize_variable_values(variables)
    assert all(np.isfinite(ops.convert_to_numpy(v)).all() for v in variables)


def test_no_sample_says_how_many_updates_were_skipped():
    optimizer = BayesTuneSGLD(0.01, warmup_steps=1, burn_in_steps=2, thinning=3)
    with pytest.raises(ValueError, match="No posterior sample was taken: 0 updates"):
        optimizer.posterior_scales()
    weight = keras.Variable(np.ones(4, "float32"), name="w")
    for value in (1.0, np.nan, 1.0, 1.0, 1.0):
        optimizer.apply([ops.full((4,), value)], [weight])
    message = (
        r"4 updates were run \(1 skipped for a non-finite gradient\), and the first "
        r"sample comes after update 5 \(burn_in_steps=2 \+ thinning=3\)"
    )
    with pytest.raises(ValueError, match=message):
        optimizer.posterior_scales()
    optimizer.apply([ops.ones(4)], [weight])
    assert optimizer.num_samples == 1


def test_a_skipped_measurement_of_the_effective_size_is_made_up_for():
    sizes = []
    for values in ((1.0, np.nan, 1.0, 1.0), (1.0, 1.0, 1.0)):
        optimizer = BayesTuneSGLD(0.01, warmup_steps=2, burn_in_steps=2, seed=0)
        weight = keras.Variable(np.arange(4, dtype="float32"), name="w")
        for value in values:
            optimizer.apply([ops.full((4,), value)], [weight])
        sizes.append(optimizer.current_effective_size())
    assert sizes[0] == sizes[1] is not None


@pytest.mark.parametrize(
    "sampler",
    [Collapsed(), JointLangevin()],
    ids=["Collapsed", "JointLangevin"],
)
def test_huge_noise_stays_finite(sampler):
    optimizer = BayesTuneSGLD(
        1.0,
        effective_size=1e-6,
        warmup_steps=0,
        burn_in_steps=0,
        thinning=1,
        seed=0,
        sampler=sampler,
    )
    weight = keras.Variable(np.array([0.0, 1e-30, 1.0, 1e6], "float32"), name="w")
    for _ in range(4):
        optimizer.apply([ops.zeros(4)], [weight])
    assert np.isfinite(ops.convert_to_numpy(weight)).all()
    with pytest.warns(UserWarning, match="noise of one update"):
        assert np.isfinite(optimizer.posterior_scales()["w"]).all()
