"""Every selector sees the loss that `fit` trains with, on any kind of model."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bayestune.selectors import Fisher, GradientSum, Movement
from tests.selectors.network import chain, new_data

RATE = 0.5
LABELS = np.array([0, 1, 1, 0, 2, 2, 1, 0, 1, 1])
CLASS_WEIGHT = {0: 0.3, 1: 2.5}


class AddedLoss(keras.layers.Layer):
    """Adds a loss and passes its input through."""

    def call(self, x):
        self.add_loss(0.7 * ops.mean(ops.square(ops.cast(x, "float32"))))
        return x


class Tripled(keras.Model):
    """A loss of its own, with what layers add counted twice."""

    def compute_loss(self, x, y, y_pred, sample_weight, training):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return 3.0 * loss + sum(self.losses)


class WithoutTraining(keras.Model):
    """The signature of before Keras 3.3."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return 2.0 * super().compute_loss(x, y, y_pred, sample_weight)


def dense(model_class=keras.Model, extra=(), **arguments):
    inputs = keras.Input((4,))
    outputs = inputs
    body = keras.layers.Dense(3, activation="tanh", name="body")
    for layer in (body, *extra, keras.layers.Dense(3, name="head", **arguments)):
        outputs = layer(outputs)
    return model_class(inputs, outputs)


def activity():
    return dense(activity_regularizer=keras.regularizers.L2(3.0))


def only_added():
    return chain(
        keras.Input((4,)), keras.layers.Dense(3, name="head"), AddedLoss(name="added")
    )


def regression():
    x, y = new_data()
    return x, np.concatenate([y, y[:, :1]], axis=1)


def classes():
    x, _ = new_data()
    return x, LABELS


def weighted():
    return (*regression(), np.linspace(0.2, 1.7, 10).astype("float32"))


def two_outputs():
    inputs = keras.Input((4,))
    outputs = {name: keras.layers.Dense(2, name=name)(inputs) for name in "ab"}
    return keras.Model(inputs, outputs)


def two_targets():
    x, y = new_data()
    return x, {"a": y, "b": 2 * y}


def masked():
    return chain(
        keras.Input((4,), dtype="int32"),
        keras.layers.Embedding(5, 3, mask_zero=True, name="words"),
        keras.layers.Dense(2, name="head", activity_regularizer="l2"),
    )


def tokens():
    ids = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 3, 1], [4, 1, 0, 0]])
    return ids, np.random.default_rng(0).normal(size=(4, 4, 2)).astype("float32")


def narrow():
    return dense(dtype="mixed_float16", extra=[AddedLoss(dtype="mixed_float16")])


CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
CASES = {
    "activity": (activity, regression, {"loss": "mse"}, {}),
    "weight": (
        lambda: dense(kernel_regularizer=keras.regularizers.L2(0.3)),
        regression,
        {"loss": "mse"},
        {},
    ),
    "added": (lambda: dense(extra=[AddedLoss()]), regression, {"loss": "mse"}, {}),
    "only added": (only_added, regression, {}, {}),
    "without y": (only_added, lambda: (new_data()[0],), {}, {}),
    "own": (
        lambda: dense(Tripled, extra=[AddedLoss()]), regression, {"loss": "mae"}, {}
    ),
    "old signature": (
        lambda: dense(WithoutTraining), regression, {"loss": "mse"}, {}
    ),
    "sample weights": (activity, weighted, {"loss": "mse"}, {}),
    "class weights": (
        activity, classes, {"loss": CROSSENTROPY}, {"class_weight": CLASS_WEIGHT}
    ),
    "loss weights": (
        two_outputs,
        two_targets,
        {"loss": {"a": "mse", "b": "mae"}, "loss_weights": {"a": 0.3, "b": 2.5}},
        {},
    ),
    "mask": (masked, tokens, {"loss": "mse"}, {}),
    "float16": (narrow, regression, {"loss": "mse"}, {}),
}  # fmt: skip


def values(model):
    return {v.path: ops.convert_to_numpy(v.value) for v in model.trainable_variables}


def moved_by_fit(new_model, data, compiled, options):
    """What one step of descent on all rows moves: rate times gradient."""
    keras.utils.set_random_seed(1)
    model = new_model()
    model.compile(keras.optimizers.SGD(RATE), **compiled)
    before = values(model)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    model.fit(
        x, y, sample_weight=sample_weight, batch_size=16, verbose=0, shuffle=False,
        **options,
    )  # fmt: skip
    return {path: np.abs(value - before[path]) for path, value in values(model).items()}


# A loss that is given has no weights.
WAYS = [(name, False) for name in CASES] + [
    (name, True) for name, case in CASES.items() if set(case[2]) == {"loss"}
]


@pytest.mark.parametrize(("name", "given"), WAYS)
def test_the_loss_is_that_of_fit(name, given):
    new_model, new_rows, compiled, options = CASES[name]
    data = new_rows()
    moved = moved_by_fit(new_model, data, compiled, options)
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    model = new_model()
    if not given:
        model.compile("adam", **compiled)
    precise = {"rtol": 2e-4, "atol": 2e-6} if name != "float16" else {"atol": 4e-3}
    for selector, rule in (
        (GradientSum(), lambda moved: moved / RATE),
        (Movement(keras.optimizers.SGD(RATE), epochs=1), lambda moved: moved),
    ):
        scores = selector.scores(
            model, data, compiled["loss"] if given else None, batch_size=16, **options
        )
        assert set(scores) == set(moved)
        for path, score in scores.items():
            np.testing.assert_allclose(
                score, rule(moved[path]), err_msg=f"{selector} {path}", **precise
            )
    assert any(score.max() > 1e-3 for score in scores.values())


@pytest.mark.parametrize("kind", ["arrays", "data set"])
def test_classes_weigh_single_examples(kind):
    x, y = classes()
    weights = np.array([CLASS_WEIGHT.get(label, 1.0) for label in y])
    model = dense()
    model.compile("sgd", loss=CROSSENTROPY)
    expected = Fisher().scores(model, (x, y, weights))
    data = (x, y) if kind == "arrays" else _PairsOfFive(x, y)
    scores = Fisher().scores(model, data, class_weight=CLASS_WEIGHT)
    for path, score in scores.items():
        np.testing.assert_allclose(score, expected[path], rtol=1e-5, atol=1e-9)


class _PairsOfFive(keras.utils.PyDataset):
    """Batches with one-hot labels."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = slice(5 * index, 5 * index + 5)
        return self.x[rows], self.y[rows]


def test_a_pass_of_some_batches():
    x, y = new_data()
    model = chain(keras.Input((4,)), keras.layers.Dense(2, name="head"))
    for selector, kind in (
        (GradientSum(), "batches"), (Fisher(), "rows"), (Fisher(), "data set"),
    ):  # fmt: skip
        data = (x, y) if kind != "data set" else _PairsOfFive(x, y)
        batch_size = None if kind == "data set" else 5
        scores = selector.scores(
            model, data, "mse", batch_size=batch_size, steps_per_epoch=1
        )
        first = selector.scores(model, (x[:5], y[:5]), "mse", batch_size=5)
        for path, score in scores.items():
            np.testing.assert_allclose(score, first[path], rtol=1e-5, err_msg=kind)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be an integer >= 1"):
        GradientSum().scores(model, (x, y), "mse", steps_per_epoch=0)


def test_callbacks_follow_the_passes():
    history = keras.callbacks.History()
    selector = Movement(keras.optimizers.SGD(0.1), epochs=3)
    model = chain(keras.Input((4,)), keras.layers.Dense(2, name="head"))
    selector.scores(model, new_data(), "mse", callbacks=[history])
    losses = history.history["loss"]
    assert len(losses) == 3 and losses[0] > losses[2]
