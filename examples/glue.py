"""Fine-tune a KerasHub BERT on a GLUE or SuperGLUE task: few scalars, or all weights.

    python examples/glue.py --task glue/rte
    python examples/glue.py --task mrpc --jsonl FOLDER --preset FOLDER --method full

Data come from TFDS, or with --jsonl from FOLDER/<task>/{train,val,test}.jsonl.
KERAS_BACKEND names the backend. See README.md beside this file.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import keras
import keras_hub
import tensorflow as tf  # the input pipeline, whatever the backend
from glue_tasks import is_regression, read_rows, score, to_arrays
from tuning import tune_all, tune_few


class MeanPoolingClassifier(keras_hub.models.TextClassifier):
    """A linear layer on the mean token: sentence encoders have no trained [CLS]."""

    def __init__(self, backbone, preprocessor, outputs):
        self.backbone, self.preprocessor = backbone, preprocessor
        backbone.get_layer("pooled_dense").trainable = False  # it reads [CLS]
        tokens = backbone(backbone.input)["sequence_output"]
        pooling = keras.layers.GlobalAveragePooling1D(name="mean")
        mean = pooling(tokens, mask=backbone.input["padding_mask"])
        small = keras.initializers.TruncatedNormal(stddev=0.02)  # as BERT's own head
        logits = keras.layers.Dense(outputs, kernel_initializer=small, name="logits")
        super().__init__(inputs=backbone.input, outputs=logits(mean))


def main(argv=None):
    """Fine-tune, evaluate, print and save the results."""
    args = arguments(argv)
    keras.utils.set_random_seed(args.seed)
    parts = read_rows(args.task, args.jsonl, args.data_dir)
    if args.smoke:
        parts = [rows[:32] for rows in parts]
    (texts, labels), *held_out = to_arrays(args.task, parts)
    train = tf.data.Dataset.from_tensor_slices((texts, labels))
    train = train.shuffle(len(labels), seed=args.seed).repeat().batch(args.batch_size)

    model = MeanPoolingClassifier(
        keras_hub.models.BertBackbone.from_preset(args.preset),
        keras_hub.models.BertTextClassifierPreprocessor.from_preset(
            args.preset, sequence_length=args.sequence_length
        ),
        outputs=1 if is_regression(args.task) else int(labels.max()) + 1,
    )
    if is_regression(args.task):
        goal = {"loss": "mean_squared_error", "metrics": []}
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        goal = {"loss": loss, "metrics": ["accuracy"]}
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    tune = {"bayestune": tune_few, "full": tune_all}[args.method]
    scalars, file = tune(model, train, goal, args)
    seconds = time.perf_counter() - start

    result = {"task": args.task, "method": args.method}
    for part, (texts, labels) in zip(("val", "test"), held_out, strict=True):
        outputs = model.predict(texts, batch_size=args.batch_size)
        for name, value in score(args.task, labels, outputs).items():
            result[f"{part} {name}"] = round(value, 4)
    result["trained scalars"] = scalars
    result["file MB"] = round(file.stat().st_size / 1e6, 3)
    result["seconds"] = round(seconds, 1)
    unit = 1e9 if sys.platform == "darwin" else 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    result["peak memory GB"] = round(peak, 2)
    (args.out / "result.json").write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        print(f"{name:16} {value}")
    return result


def arguments(argv=None):
    """Parse the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    add = parser.add_argument
    add("--task", default="glue/rte", help="TFDS name such as super_glue/cb")
    add("--jsonl", type=Path, help="folder that holds the folder of the task")
    add("--data-dir", help="where TFDS keeps its data sets")
    add("--preset", default="all_minilm_l6_v2_en", help="BertBackbone preset or folder")
    add("--method", choices=["bayestune", "full"], default="bayestune")
    add("--fraction", type=float, default=0.005, help="share of the scalars to train")
    add("--selection-steps", type=int, default=400, help="steps of stage 1")
    add("--finetune-steps", type=int, default=600, help="steps of stage 2, or of full")
    add("--selection-learning-rate", type=float, default=1e-4)
    add("--learning-rate", type=float, help="default: 1e-3; with full: 1e-4")
    add("--batch-size", type=int, default=16)
    add("--sequence-length", type=int, default=128)
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="8 + 4 steps on a few short rows")
    add("--out", type=Path, default=Path("results/glue"), help="folder for the results")
    args = parser.parse_args(argv)
    if args.smoke:
        args.selection_steps, args.finetune_steps = 8, 4
        args.batch_size, args.sequence_length = 4, 16
    return args


if __name__ == "__main__":
    main()
