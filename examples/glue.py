"""Fine-tune a KerasHub BERT on a GLUE or SuperGLUE task: few scalars, or all weights.

    python examples/glue.py --task glue/rte
    python examples/glue.py --task mrpc --jsonl FOLDER --preset FOLDER --method full

Data come from TFDS, or with --jsonl from FOLDER/<task>/{train,val,test}.jsonl.
KERAS_BACKEND names the backend. See README.md beside this file.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

from command_line import ShowDefaults, add_training, save_and_print


def main(argv=None):
    """Fine-tune, evaluate, print and save the results."""
    args = arguments(argv)
    # Not above: the help comes without the imports of a backend, which take seconds.
    import keras
    import keras_hub
    import tensorflow as tf  # the input pipeline, whatever the backend
    from glue_tasks import is_regression, majority, read_rows, score, to_arrays
    from mean_pooling import MeanPoolingClassifier
    from tuning import METHODS

    keras.utils.set_random_seed(args.seed)
    parts = read_rows(args.task, args.jsonl, args.data_dir)
    if args.smoke:
        parts = [rows[:32] for rows in parts]
    (texts, labels), *held_out = to_arrays(args.task, parts)
    train = tf.data.Dataset.from_tensor_slices((texts, labels))
    train = train.shuffle(len(labels), seed=args.seed).repeat().batch(args.batch_size)

    try:
        backbone = keras_hub.models.BertBackbone.from_preset(args.preset)
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
            args.preset, sequence_length=args.sequence_length
        )
    except Exception as error:
        sys.exit(
            f"KerasHub could not load the preset {args.preset!r}: {error}\nWithout "
            "network, --preset FOLDER takes a folder; README.md beside this file says "
            "where real weights come from."
        )
    model = MeanPoolingClassifier(
        backbone,
        preprocessor,
        outputs=1 if is_regression(args.task) else int(labels.max()) + 1,
    )
    if is_regression(args.task):
        goal = {"loss": "mean_squared_error", "metrics": []}
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        goal = {"loss": loss, "metrics": ["accuracy"]}
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    scalars, file = METHODS[args.method](model, train, goal, args)
    seconds = time.perf_counter() - start

    result = {"task": args.task, "method": args.method}
    of_train = labels
    for part, (texts, labels) in zip(("val", "test"), held_out, strict=True):
        outputs = model.predict(texts, batch_size=args.batch_size)
        for name, value in score(args.task, labels, outputs).items():
            result[f"{part} {name}"] = round(value, 4)
        constant = majority(args.task, of_train, len(labels))
        for name, value in score(args.task, labels, constant).items():
            result[f"{part} {name} of the majority class"] = round(value, 4)
    result["trained scalars"] = scalars
    result["file MB"] = round(file.stat().st_size / 1e6, 3)
    result["seconds"] = round(seconds, 1)
    unit = 1e9 if sys.platform == "darwin" else 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    result["peak memory GB"] = round(peak, 2)
    save_and_print(args.out, result)
    return result


def arguments(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ShowDefaults)
    add = parser.add_argument
    none = argparse.SUPPRESS  # no default to show
    add("--task", default="glue/rte", help="TFDS name such as super_glue/cb")
    add("--jsonl", type=Path, default=none, help="folder that holds the task's folder")
    add("--data-dir", default=none, help="where TFDS keeps its data sets")
    add("--preset", default="all_minilm_l6_v2_en", help="BertBackbone preset or folder")
    add_training(add, selection_steps=400, finetune_steps=600)
    add("--batch-size", type=int, default=16, help="rows of a step")
    add("--sequence-length", type=int, default=128, help="tokens of a row")
    add("--seed", type=int, default=0, help="of order, noise and dropout")
    add("--smoke", action="store_true", help="8 + 4 steps on a few short rows")
    add("--out", type=Path, default=Path("results/glue"), help="folder for the results")
    unset = dict.fromkeys(("jsonl", "data_dir", "backup_dir", "learning_rate"))
    args = parser.parse_args(argv, argparse.Namespace(**unset))
    if args.smoke:
        args.selection_steps, args.finetune_steps = 8, 4
        args.batch_size, args.sequence_length = 4, 16
    return args


if __name__ == "__main__":
    main()
