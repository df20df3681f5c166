"""Fine-tune a KerasHub image classifier on a VTAB-1k task: few scalars, or all.

    python examples/vtab.py --task cifar100
    python examples/vtab.py --task dtd --preset efficientnet_b0_ra_imagenet

VTAB-1k (Zhai et al., "A Large-scale Study of Representation Learning with the Visual
Task Adaptation Benchmark", 2019): 800 images to train on, 200 to validate. TFDS
downloads the data, and KerasHub the weights. KERAS_BACKEND names the backend.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import keras
import keras_hub
import tensorflow as tf  # the input pipeline, whatever the backend
import tensorflow_datasets as tfds

import keras_bayestune as kbt

TRAIN, VALIDATION = "train[:800]", "train[800:1000]"
# TFDS name and split to test on.
LABELLED = {
    "caltech101": ("caltech101", "test"),
    "cifar100": ("cifar100", "test"),
    "dtd": ("dtd", "test"),
    "flowers102": ("oxford_flowers102", "test"),
    "pets": ("oxford_iiit_pet", "test"),
    "sun397": ("sun397", "test"),
    "svhn": ("svhn_cropped", "test"),
    "camelyon": ("patch_camelyon", "test"),
    "eurosat": ("eurosat/rgb", "train[21600:]"),
    "resisc45": ("resisc45", "train[25200:]"),
    "retinopathy": ("diabetic_retinopathy_detection/btgraham-300", "test"),
    "dmlab": ("dmlab", "test"),
}


def bin_of(edges, value):
    """Return the number of the interval that holds `value`."""
    return tf.reduce_sum(tf.cast(value > tf.constant(edges), "int64")) - 1


def objects_of_clevr(row):
    return tf.size(row["objects"]["size"]) - 3  # 3 to 10


def distance_of_clevr(row):
    nearest = tf.reduce_min(row["objects"]["pixel_coords"][:, 2])
    return bin_of([0.0, 8.0, 8.5, 9.0, 9.5, 10.0], nearest)


def distance_of_kitti(row):
    types, places = row["objects"]["type"], row["objects"]["location"]
    vehicles = tf.boolean_mask(places[:, 2], types < 3)  # car, van, truck
    nearest = tf.reduce_min(tf.concat([vehicles, [1000.0]], 0))  # 1000: no vehicle
    return bin_of([-100.0, 8.0, 20.0, 999.0], nearest)


# TFDS name, split to test on, number of classes, label of a row; the classes are those
# of the benchmark's own code (google-research/task_adaptation).
COMPUTED = {
    "clevr-count": ("clevr", "validation", 8, objects_of_clevr),
    "clevr-distance": ("clevr", "validation", 6, distance_of_clevr),
    "dsprites-location": (
        *("dsprites", "train[90%:]", 16),
        lambda row: row["label_x_position"] // 2,  # of 32
    ),
    "dsprites-orientation": (
        *("dsprites", "train[90%:]", 16),
        lambda row: row["label_orientation"] * 2 // 5,  # of 40
    ),
    "kitti-distance": ("kitti", "test", 4, distance_of_kitti),
    "smallnorb-azimuth": (
        *("smallnorb", "test[50%:]", 18),
        lambda row: row["label_azimuth"],
    ),
    "smallnorb-elevation": (
        *("smallnorb", "test[50%:]", 9),
        lambda row: row["label_elevation"],
    ),
}
TASKS = [*LABELLED, *COMPUTED]


def load(task, data_dir):
    """Return (train, validation, test), each of pairs, and the number of classes."""
    label_of: Any = None
    if task in LABELLED:
        name, test = LABELLED[task]
    else:
        name, test, classes, label_of = COMPUTED[task]
    parts, info = tfds.load(
        name, split=[TRAIN, VALIDATION, test], data_dir=data_dir, with_info=True
    )
    if label_of is None:
        classes, label_of = info.features["label"].num_classes, lambda row: row["label"]
    # dSprites has 0 and 1 where the others have 0 to 255.
    unit = 255 if name == "dsprites" else 1
    pairs = [
        part.map(lambda row: (row["image"] * unit, label_of(row))) for part in parts
    ]
    return pairs, classes


def batches(part, size, batch_size, training=False, seed=0):
    """Return batches of colour images of one size, which a data set need not have."""

    def fitting(image, label):
        image = tf.image.resize(image, size)
        return tf.repeat(image, 3 // image.shape[-1], axis=-1), label

    part = part.map(fitting)
    if training:
        part = part.cache().shuffle(1000, seed=seed).repeat()
    return part.batch(batch_size).prefetch(2)


def tune_all(model, train, args, goal):
    """Return the number of trained scalars and the file with their values."""
    model.compile(keras.optimizers.Adam(args.learning_rate or 1e-4), **goal)
    model.fit(train, steps_per_epoch=args.finetune_steps)
    file = args.out / "model.weights.h5"
    model.save_weights(file)
    return sum(math.prod(v.shape) for v in model.trainable_variables), file


def tune_few(model, train, args, goal):
    """Return the number of trained scalars and the file with their values."""
    steps = args.selection_steps
    sampler = kbt.BayesTuneSGLD(
        args.selection_learning_rate,
        warmup_steps=steps // 4,
        burn_in_steps=steps // 2,
        thinning=max(1, steps // 80),
        seed=args.seed,
    )
    select = kbt.SparseMaskCallback(
        fraction=args.fraction,
        sampling_steps=steps,
        finetune_optimizer=keras.optimizers.Adam(args.learning_rate or 1e-3),
    )
    model.compile(sampler, **goal)
    both = steps + args.finetune_steps
    model.fit(train, steps_per_epoch=both, callbacks=[select])
    select.mask.summary()
    file = args.out / "delta.safetensors"
    kbt.SparseDelta.from_model(model, select).save(file)
    return select.mask.count, file


def main(argv=None):
    """Fine-tune, evaluate, print and save the results."""
    args = arguments(argv)
    keras.utils.set_random_seed(args.seed)
    parts, classes = load(args.task, args.data_dir)
    model = keras_hub.models.ImageClassifier.from_preset(
        args.preset, num_classes=classes
    )
    size = model.backbone.image_shape[:2]
    if None in size:  # a convolutional network takes any size
        size = model.preprocessor.image_converter.image_size
    train, *held_out = (
        batches(part, size, args.batch_size, training=i == 0, seed=args.seed)
        for i, part in enumerate(parts)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    goal = {"loss": loss, "metrics": ["accuracy"]}
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    tune = {"bayestune": tune_few, "full": tune_all}[args.method]
    scalars, file = tune(model, train, args, goal)
    result = {"task": args.task, "method": args.method, "trained scalars": scalars}
    result["seconds"] = round(time.perf_counter() - start, 1)
    for name, part in zip(("validation", "test"), held_out, strict=True):
        found = model.evaluate(part, verbose=0, return_dict=True)
        result[f"{name} accuracy"] = round(found["accuracy"], 4)
    result["file MB"] = round(file.stat().st_size / 1e6, 3)
    (args.out / "result.json").write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        print(f"{name:20} {value}")
    return result


def arguments(argv=None):
    """Parse the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    add = parser.add_argument
    add("--task", default="cifar100", choices=TASKS)
    add("--data-dir", help="where TFDS keeps its data sets")
    add("--preset", default="vit_base_patch16_224_imagenet", help="or a folder")
    add("--method", choices=["bayestune", "full"], default="bayestune")
    add("--fraction", type=float, default=0.005, help="share of the scalars to train")
    add("--selection-steps", type=int, default=600, help="steps of stage 1")
    add("--finetune-steps", type=int, default=1000, help="steps of stage 2, or of full")
    add("--selection-learning-rate", type=float, default=1e-4)
    add("--learning-rate", type=float, help="default: 1e-3; with full: 1e-4")
    add("--batch-size", type=int, default=32)
    add("--seed", type=int, default=0)
    add("--smoke", action="store_true", help="8 + 4 steps")
    add("--out", type=Path, default=Path("results/vtab"), help="folder for the results")
    args = parser.parse_args(argv)
    if args.smoke:
        args.selection_steps, args.finetune_steps, args.batch_size = 8, 4, 4
    return args


if __name__ == "__main__":
    main()
