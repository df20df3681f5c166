"""Text: a sentence encoder with real weights on GLUE tasks."""

import functools
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np

from benchmarks.quality.suite import Problem, Suite

# The example is a script; its way to read tasks and its model are used here.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from glue_tasks import is_regression, read_rows, score, to_arrays  # noqa: E402
from mean_pooling import MeanPoolingClassifier  # noqa: E402

MOST_VALIDATION, MOST_TEST = 400, 750  # rows; to evaluate costs as much as to train
LENGTHS = {"stsb": 32}  # tokens of a pair; of three pairs in four, all are read
LENGTH = 48  # of the other tasks


class Text(Suite):
    """A BERT from `preset` on tasks of `jsonl`, or of TFDS."""

    name = "text"
    tasks = ("stsb", "mrpc", "rte")  # by what a step teaches
    fractions = (0.005, 0.02)
    batch_size = 8
    selection_steps, finetune_steps = 60, 80
    fisher_examples = 1024
    selection_rate = 1e-4
    rates = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    full_rates = (3e-5, 1e-4, 3e-4)
    movement_rate = 1e-4
    compiles_once = True  # a compilation takes as long as fifty steps
    lengths = LENGTHS

    def __init__(self, preset, jsonl=None, data_dir=None):
        self.preset, self.jsonl, self.data_dir = preset, jsonl, data_dir

    @functools.cache  # noqa: B019 (one suite lives as long as the run)
    def data(self, task):
        """Return train, validation and test, tokenised."""
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
            self.preset, sequence_length=self.lengths.get(task, LENGTH)
        )
        parts = to_arrays(task, read_rows(task, self.jsonl, self.data_dir))
        return [
            (
                {k: np.asarray(v) for k, v in preprocessor(texts, None).items()},
                labels,
            )
            for texts, labels in parts
        ]

    @functools.cache  # noqa: B019
    def model(self, task):
        """Return the model and its weights as pre-trained; all seeds share it."""
        model = self.new_model(task)
        return model, model.get_weights()

    def new_model(self, task):
        """Return a model with the preset's backbone."""
        labels = self.data(task)[0][1]
        outputs = 1 if is_regression(task) else int(labels.max()) + 1
        backbone = keras_hub.models.BertBackbone.from_preset(self.preset)
        # Tokens come in already: tokenising once is enough.
        return MeanPoolingClassifier(backbone, None, outputs)

    def problem(self, task, seed, head):
        """Return the task with a new head, which competes or not."""
        model, weights = self.model(task)
        rng = np.random.default_rng(seed)
        kernel, bias = weights[-2:]
        kernel = rng.normal(0, 0.02, kernel.shape).astype("float32")
        (x, y), validation, test = self.data(task)
        # A KerasHub task's `fit` takes arrays in their order.
        order = rng.permutation(len(y))
        return Problem(
            model,
            [*weights[:-2], kernel, np.zeros_like(bias)],
            ({name: array[order] for name, array in x.items()}, y[order]),
            first(MOST_VALIDATION, validation),
            first(MOST_TEST, test),
            loss=(
                keras.losses.MeanSquaredError()
                if is_regression(task)
                else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            ),
            metrics=functools.partial(score_first, task),
            head=("^logits/",) if head == "always" else (),
            is_classification=not is_regression(task),
        )

    def with_lora(self, problem, scalars):
        """LoRA on query and value, as KerasHub has it."""
        task = next(t for t in self.tasks if self.model(t)[0] is problem.model)
        model = self.new_model(task)
        backbone = model.backbone
        # Keras gives each head a first factor of its own: width, heads, rank.
        width, heads = backbone.hidden_dim, backbone.num_heads
        per_rank = 2 * backbone.num_layers * (width * heads + width // heads)
        rank = max(1, round(scalars / per_rank))
        model.set_weights(problem.weights)
        backbone.enable_lora(rank)
        for variable in backbone.trainable_variables:  # biases of these layers
            if "lora" not in variable.path:
                variable.trainable = False
        return model


def first(rows, data):
    """Return so many rows."""
    x, y = data
    return keras.tree.map_structure(lambda array: array[:rows], x), y[:rows]


def score_first(task, labels, outputs):
    """Return the task's metrics, the one that ranks first."""
    found = score(task, labels, outputs)
    if "Spearman" in found:
        return {"Spearman": found.pop("Spearman"), **found}
    return found
