"""Vision: scikit-learn's digits, a small network, four shifted tasks."""

import functools

import keras
import keras_hub
import numpy as np
import sklearn.datasets

from benchmarks.quality.suite import Problem, Suite

PRETRAINING, VALIDATION, TEST = 850, 247, 500  # images; what is left can train
LABELLED = {"turned": 200, "new classes": 200, "permuted": 200, "transposed": 100}
BACKBONE = 64 * 96 + 96 + 96 * 64 + 64


def new_model(name="digits"):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(inputs)
    x = keras.layers.Dense(96, activation="relu", name="hidden_1")(x)
    x = keras.layers.Dense(64, activation="relu", name="hidden_2")(x)
    backbone = keras_hub.models.Backbone(inputs, x, name="backbone")
    logits = keras.layers.Dense(10, name="head")(backbone(inputs))
    return keras.Model(inputs, logits, name=name)


@functools.cache
def all_digits():
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8, 1).astype("float32") / 16, labels


def shifted(task, images, labels, rng):
    """Return images and labels as the task has them."""
    if task == "turned":  # by 90 degrees, inverted, other names for the classes
        return 1 - np.rot90(images, axes=(1, 2)), (3 * labels + 1) % 10
    if task == "permuted":  # half of the pixels
        places = np.arange(64)
        moving = rng.permutation(64)[:32]
        places[moving] = rng.permutation(moving)
        return images.reshape(-1, 64)[:, places].reshape(images.shape), labels
    if task == "transposed":
        return images.transpose(0, 2, 1, 3), labels
    return images, labels


def accuracy(labels, outputs):
    return {"accuracy": float(np.mean(outputs.argmax(-1) == labels))}


class Digits(Suite):
    """A network of 13,098 scalars that read 850 upright digits moves to four tasks."""

    name = "digits"
    tasks = tuple(LABELLED)
    fractions = (0.005, 0.01, 0.02, 0.05, 0.1)
    batch_size = 16
    selection_steps, finetune_steps = 400, 300
    fisher_examples = 6400
    selection_rate = 3e-3
    rates = (3e-3, 1e-2, 3e-2)
    full_rates = (3e-4, 1e-3, 3e-3)
    movement_rate = 3e-3
    compiles_once = True
    pretraining_epochs = 25

    def __init__(self):
        self.model = self.new_model("digits")
        self.loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def new_model(self, name):
        """Return a network with new weights, its head last."""
        return new_model(name)

    @functools.lru_cache(maxsize=4)  # noqa: B019 (one suite lives as long as the run)
    def pretrained(self, seed, lower_half):
        """Return the weights of a network that learned upright digits."""
        images, labels = all_digits()
        order = np.random.default_rng(seed).permutation(len(images))
        known = order[:PRETRAINING]
        if lower_half:
            known = known[labels[known] < 5]
        keras.utils.set_random_seed(seed)
        teacher = self.new_model("teacher")
        teacher.compile(keras.optimizers.Adam(1e-3), self.loss)
        # Batches of one size need one compilation.
        known = known[: len(known) // 25 * 25]
        epochs = self.pretraining_epochs
        teacher.fit(
            images[known], labels[known], batch_size=25, epochs=epochs, verbose=0
        )
        return teacher.get_weights(), order[PRETRAINING:]

    def problem(self, task, seed, head):
        """Return the task; a head that competes is the pre-trained one if it can be."""
        images, labels = all_digits()
        new_classes = task == "new classes"
        weights, rest = self.pretrained(seed, new_classes)
        rng = np.random.default_rng([seed, self.tasks.index(task)])
        if head == "always" or new_classes:
            shape = weights[-2].shape
            limit = (6 / sum(shape)) ** 0.5  # as Keras starts a Dense layer
            weights = [
                *weights[:-2],
                rng.uniform(-limit, limit, shape).astype("float32"),
                np.zeros(10, "float32"),
            ]
        test, validation, train = np.split(rest, [TEST, TEST + VALIDATION])
        parts = []
        images, labels = shifted(task, images, labels, rng)
        for part in (train[: LABELLED[task]], validation, test):
            if new_classes:
                part = part[labels[part] >= 5]
            parts.append((np.ascontiguousarray(images[part]), labels[part]))
        return Problem(
            self.model,
            weights,
            *parts,
            loss=self.loss,
            metrics=accuracy,
            head=("^head/",) if head == "always" else (),
            is_classification=True,
        )

    def with_lora(self, problem, scalars):
        """LoRA on both layers of the backbone; 320 scalars a rank."""
        rank = round(scalars / 320)
        if rank == 0:
            return None
        model = self.new_model("digits_lora")
        model.set_weights(problem.weights)
        model.get_layer("backbone").enable_lora(rank, ["hidden_1", "hidden_2"])
        for name in ("hidden_1", "hidden_2"):  # KerasHub would train these as well
            model.get_layer("backbone").get_layer(name).bias.trainable = False
        return model
