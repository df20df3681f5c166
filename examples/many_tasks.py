"""One backbone, three tasks, three small files: tuned, swapped live, and merged.

    python examples/many_tasks.py --jsonl FOLDER --preset FOLDER

Data come from TFDS, or with --jsonl from FOLDER/<task>/{train,val,test}.jsonl. All
tasks share one model of two outputs: a score between two bounds is a soft label.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import keras_hub
import numpy as np
import tensorflow as tf  # the input pipeline, whatever the backend
from glue_tasks import is_regression, read_jsonl, read_tfds, score, to_arrays
from mean_pooling import MeanPoolingClassifier

import keras_bayestune as kbt
from keras_bayestune import deltas as algebra


def build(args):
    """Return a fresh model: the pre-trained backbone and a new head."""
    keras.utils.set_random_seed(0)
    return MeanPoolingClassifier(
        keras_hub.models.BertBackbone.from_preset(args.preset),
        keras_hub.models.BertTextClassifierPreprocessor.from_preset(
            args.preset, sequence_length=args.sequence_length
        ),
        outputs=2,
    )


def load(task, args):
    """Return (texts, labels) of train and test."""
    read = read_jsonl(args.jsonl / task) if args.jsonl else read_tfds(f"glue/{task}")
    return to_arrays(task, [rows[: 32 if args.smoke else None] for rows in read])[::2]


def tune(task, train, args):
    """Run both stages on one task; return the delta."""
    texts, labels = train
    share = (labels - labels.min()) / np.ptp(labels)
    targets = np.stack([1 - share, share], axis=-1).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((texts, targets))
    batches = batches.shuffle(len(labels), seed=0).repeat().batch(16)
    model = build(args)
    steps = args.selection_steps
    sampler = kbt.BayesTuneSGLD(
        1e-4, warmup_steps=steps // 4, burn_in_steps=steps // 2, thinning=1, seed=0
    )
    select = kbt.SparseMaskCallback(
        fraction=args.fraction,
        selection_steps=steps,
        finetune_optimizer=keras.optimizers.Adam(1e-3),
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(sampler, loss, metrics=[])
    model.fit(batches, steps_per_epoch=steps + args.finetune_steps, callbacks=[select])
    return algebra.SparseDelta.from_model(model, select, metadata={"task": task})


def evaluate(task, model, test):
    """Return the first metric of a task."""
    outputs = model.predict(test[0], batch_size=16, verbose=0)
    if is_regression(task):
        outputs = outputs[:, 1:] - outputs[:, :1]
    return next(iter(score(task, test[1], outputs).items()))


def merged(deltas, task):
    """Return the merged variants, with the head of one task."""
    parts, head = list(deltas.values()), deltas[task]
    dropped = [algebra.dare(part, 0.5, seed=n) for n, part in enumerate(parts)]
    return {
        "mean": algebra.weighted_mean(parts, whole_from=head),
        "TIES": algebra.ties(parts, whole_from=head),
        "DARE": algebra.weighted_mean(dropped, whole_from=head),
    }


def main(argv=None):
    """Tune, save, swap, merge; print and save the table."""
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    tests, deltas = {}, {}
    for task in args.tasks:
        train, tests[task] = load(task, args)
        deltas[task] = tune(task, train, args)
        deltas[task].save(args.out / f"{task}.safetensors")
        deltas[task].save(args.out / f"{task}.bfloat16.safetensors", "bfloat16")
    print(algebra.conflicts(deltas))

    tasks = algebra.DeltaSet(build(args))  # from here on one model, whatever the task
    for task in args.tasks:
        tasks.add(task, args.out / f"{task}.safetensors")
        tasks.activate(task)  # the first time, JAX compiles
    rows = []
    for task in args.tasks:
        tasks.deactivate()
        start = time.perf_counter()
        tasks.activate(task)
        seconds = time.perf_counter() - start
        metric, own = evaluate(task, tasks.model, tests[task])
        files = [args.out / f"{task}{end}.safetensors" for end in ("", ".bfloat16")]
        row = {
            "task": task,
            "scalars": deltas[task].count,
            "file bytes": files[0].stat().st_size,
            "in bfloat16": files[1].stat().st_size,
            "swap ms": round(1e3 * seconds, 1),
            "metric": metric,
            "own": round(own, 3),
        }
        for rule, delta in merged(deltas, task).items():
            tasks.add(f"{task} {rule}", delta)
            with tasks.using(f"{task} {rule}") as model:
                row[rule] = round(evaluate(task, model, tests[task])[1], 3)
        rows.append(row)
    for cells in [list(rows[0]), *(list(row.values()) for row in rows)]:
        print("".join(f"{cell!s:>12}" for cell in cells))
    (args.out / "results.json").write_text(json.dumps(rows, indent=1))
    return rows


def arguments(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--tasks", nargs="+", default=["stsb", "mrpc", "rte"])
    add("--jsonl", type=Path, help="folder that holds the folders of the tasks")
    add("--preset", default="all_minilm_l6_v2_en", help="BertBackbone preset or folder")
    add("--fraction", type=float, default=0.005, help="share of the scalars to train")
    add("--selection-steps", type=int, default=60)
    add("--finetune-steps", type=int, default=300)
    add("--sequence-length", type=int, default=48)
    add("--smoke", action="store_true", help="8 + 2 steps on a few short rows")
    add("--out", type=Path, default=Path("results/many_tasks"))
    args = parser.parse_args(argv)
    if args.smoke:
        args.selection_steps, args.finetune_steps, args.sequence_length = 8, 2, 16
    return args


if __name__ == "__main__":
    main()
