"""GLUE and SuperGLUE tasks for `glue.py`: rows as texts and labels, and the metrics.

Every task but ReCoRD. A task goes by its TFDS name, `glue/rte` or `super_glue/cb`.
"""

import json
import sys

import numpy as np

# The segments that a model reads: the first line whose fields the rows have.
TEMPLATES = (
    ("{word}: {sentence1}", "{sentence2}"),  # wic
    ("{premise} What was the {question}?", "{choice1} Or: {choice2}"),  # copa
    ("{text}", "{span2_text} is {span1_text}."),  # wsc
    ("{paragraph}", "{question} {answer}"),  # multirc
    ("{question}", "{passage}"),  # boolq
    ("{question}", "{sentence}"),  # qnli
    ("{question1}", "{question2}"),  # qqp
    ("{premise}", "{hypothesis}"),
    ("{sentence1}", "{sentence2}"),
    ("{text_a}", "{text_b}"),
    ("{sentence}",),
    ("{text}",),
)


def read_rows(task, jsonl=None, data_dir=None):
    """Return the rows of train, val and test, from `jsonl`/task or from TFDS."""
    if jsonl:
        return read_jsonl(jsonl / task.split("/")[-1])
    return read_tfds(task, data_dir)


def read_jsonl(folder):
    texts = [
        (folder / f"{part}.jsonl").read_bytes() for part in ("train", "val", "test")
    ]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def read_tfds(name, data_dir=None):
    """Read a data set of TFDS, the labelled validation set as test set.

    The official test sets have no labels. The last tenth of the training set is the
    validation set.
    """
    import tensorflow_datasets as tfds

    labelled = "validation_matched" if name == "glue/mnli" else "validation"
    split = ["train[:90%]", "train[90%:]", labelled]
    try:
        loaded = tfds.load(name, split=split, data_dir=data_dir)
    except Exception as error:
        sys.exit(
            f"TFDS could not load {name!r}: {error}\nWithout network, --jsonl FOLDER "
            f"reads FOLDER/{name.split('/')[-1]}/{{train,val,test}}.jsonl, one object "
            'with a "label" and the texts per line.'
        )
    parts = tfds.as_numpy(loaded)
    return [[decoded(row) for row in part] for part in parts]


def majority(task, labels, rows):
    """Return outputs, the same for each row: the mean score, or the largest class."""
    if is_regression(task):
        return np.full((rows, 1), np.mean(labels))
    counts = np.bincount(labels)
    return np.tile(counts == counts.max(), (rows, 1)).astype("float32")


def decoded(row):
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}


def is_regression(task):
    return task.split("/")[-1] == "stsb"


def to_arrays(task, parts):
    """Return ((segment, ...), labels) per part; scores in deviations of train."""
    fields = parts[0][0]
    for template in TEMPLATES:
        try:
            [segment.format(**fields) for segment in template]
            break
        except KeyError:
            continue
    else:
        raise ValueError(
            f"No template reads {task}, whose rows have the fields {sorted(fields)}. "
            "Add one to TEMPLATES."
        )
    named = [[row["label"] for row in rows] for rows in parts]
    if is_regression(task):
        mean, deviation = np.mean(named[0]), np.std(named[0])
        labels = [((np.array(y) - mean) / deviation).astype("float32") for y in named]
    else:
        classes = {name: number for number, name in enumerate(sorted(set(named[0])))}
        labels = [np.array([classes[name] for name in y]) for y in named]
    texts = [
        tuple([segment.format(**row) for row in rows] for segment in template)
        for rows in parts
    ]
    return list(zip(texts, labels, strict=True))


def accuracy(labels, predictions):
    return np.mean(labels == predictions)


def f1(labels, predictions):
    """F1 of class 1 if there are two, else the mean over the classes."""
    classes = [1] if labels.max() < 2 else np.unique(labels)
    hits = [np.sum((labels == c) & (predictions == c)) for c in classes]
    sizes = [np.sum(labels == c) + np.sum(predictions == c) for c in classes]
    return np.mean(2 * np.array(hits) / np.maximum(sizes, 1))


def pearson(labels, predictions):
    """Pearson's correlation; for two binary variables this is Matthews'."""
    constant = np.ptp(labels) == 0 or np.ptp(predictions) == 0
    return 0.0 if constant else np.corrcoef(labels, predictions)[0, 1]


def spearman(labels, predictions):
    return pearson(ranks(labels), ranks(predictions))


def ranks(values):
    """Rank the values; equal ones share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


METRICS = {
    "cola": {"Matthews": pearson},
    "stsb": {"Pearson": pearson, "Spearman": spearman},
    **dict.fromkeys(["mrpc", "qqp", "cb", "multirc"], {"accuracy": accuracy, "F1": f1}),
}


def score(task, labels, outputs):
    """Return {metric: value} of a model's outputs, (rows, classes) or (rows, 1)."""
    predictions = outputs[:, 0] if is_regression(task) else outputs.argmax(axis=-1)
    metrics = METRICS.get(task.split("/")[-1], {"accuracy": accuracy})
    return {name: float(f(labels, predictions)) for name, f in metrics.items()}
