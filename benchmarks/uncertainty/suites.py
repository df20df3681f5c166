"""The suites, with what happens to their test data."""

import numpy as np

from benchmarks.quality.digits import Digits
from benchmarks.quality.text import Text
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


class ShortText(Text):
    """Sentences: SST-2 and TREC, 500 labels, 24 tokens."""

    name = "short-text"
    tasks = ("trec", "sst2")
    fractions = (0.005,)
    batch_size = 16
    selection_steps, finetune_steps = 40, 60
    rates = (3e-3,)  # of 1e-3, 3e-3 and 1e-2 the best after 80 steps on TREC
    length = 24
    most_train, most_validation, most_test = 500, 200, 300
    own_masks = iterates = False  # each a few minutes
    members = 3
    effective_sizes = (1e2, 1e4, 1e6)

    def problem(self, task, seed, head):
        """Return the task with few labels."""
        problem = super().problem(task, seed, head)
        problem.train = _first(self.most_train, problem.train)
        problem.validation = _first(self.most_validation, problem.validation)
        problem.test = _first(self.most_test, problem.test)
        return problem

    def shifts(self, task, test):
        """Return `{name: (tokens, labels)}`."""
        tokens, labels = test
        return {"30 % of the words gone": (shift.words_gone(tokens, 0.3), labels)}

    def out_of_distribution(self, task, test):
        """Return sentences of the other task."""
        other = self.tasks[1 - self.tasks.index(task)]
        return _first(self.most_test, self.data(other)[2])[0]


def _first(rows, data):
    x, y = data
    return {name: np.asarray(array)[:rows] for name, array in x.items()}, y[:rows]


SUITES = {"digits": ShiftedDigits, "short-text": ShortText}
