"""The suites, with what happens to their test data."""

import numpy as np

from benchmarks.quality.digits import Digits
from benchmarks.quality.photographs import Photographs
from benchmarks.quality.text import Text, first
from benchmarks.uncertainty import shift
from keras_bayestune.uncertainty.laplace_approximation import EFFECTIVE_SIZES


class ShiftedDigits(Digits):
    """The four tasks of digits; turned further, and with noise."""

    own_masks = iterates = True
    members = 10
    effective_sizes = EFFECTIVE_SIZES

    def shifts(self, task, test):
        """Return `{name: (images, labels)}`."""
        images, labels = test
        return {
            "turned by 20 degrees": (shift.turned(images, 20), labels),
            "noise of 0.2": (shift.noisy(images, 0.2), labels),
        }

    def out_of_distribution(self, task, test):
        """Return images that are not digits."""
        return shift.scrambled(test[0])


class Few:
    """Tasks of which some rows do: 500 labels, 40 and 60 steps."""

    fractions = (0.005,)
    batch_size = 16
    selection_steps, finetune_steps = 40, 60
    rates = (3e-3,)  # of 1e-3, 3e-3 and 1e-2 the best after 80 steps on TREC
    most_train, most_validation, most_test = 500, 200, 300
    own_masks = iterates = False  # each a few minutes
    members = 3
    effective_sizes = (1e2, 1e4, 1e6)

    def problem(self, task, seed, head):
        """Return the task with few labels."""
        problem = super().problem(task, seed, head)
        problem.train = first(self.most_train, problem.train)
        problem.validation = first(self.most_validation, problem.validation)
        problem.test = first(self.most_test, problem.test)
        return problem


class ShortText(Few, Text):
    """Sentences of 24 tokens, SST-2 and TREC, and MRPC's pairs of 48."""

    name = "short-text"
    tasks = ("trec", "sst2", "mrpc")
    lengths = {"trec": 24, "sst2": 24}
    others = {"trec": "sst2", "sst2": "trec", "mrpc": "rte"}

    def shifts(self, task, test):
        """Return `{name: (tokens, labels)}`."""
        tokens, labels = test
        return {"30 % of the words gone": (shift.words_gone(tokens, 0.3), labels)}

    def out_of_distribution(self, task, test):
        """Return sentences, or pairs, of another task."""
        return first(self.most_test, self.data(self.others[task])[2])[0]


class Flowers(Few, Photographs):
    """EfficientNet-Lite0 on five kinds of flowers; noise, and traffic signs."""

    name = "flowers"
    tasks = ("flowers",)

    def shifts(self, task, test):
        """Return `{name: (images, labels)}`."""
        images, labels = test
        return {
            "turned by 20 degrees": (_bytes(shift.turned(images, 20)), labels),
            "noise of 0.1": (_bytes(255 * shift.noisy(images / 255, 0.1)), labels),
        }

    def out_of_distribution(self, task, test):
        """Return traffic signs, as large."""
        signs = self.task("gtsrb")[0].test[0]
        return _bytes(shift.enlarged(signs, test[0].shape[1] / signs.shape[1]))


def _bytes(pixels):
    return np.round(pixels).astype("uint8")


SUITES = {suite.name: suite for suite in (ShiftedDigits, ShortText, Flowers)}
