"""The 19 tasks of VTAB-1k from TFDS, some of whose labels are computed."""

from typing import Any

import numpy as np
import tensorflow as tf  # the input pipeline, whatever the backend
import tensorflow_datasets as tfds

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


def majority(train, part):
    """Return the accuracy of the class that is most frequent in `train`."""
    classes, counts = np.unique([int(y) for _, y in train], return_counts=True)
    return float(np.mean([int(y) == classes[counts.argmax()] for _, y in part]))


def batches(part, size, batch_size, training=False, seed=0):
    """Return batches of colour images of one size, which a data set need not have."""

    def fitting(image, label):
        image = tf.image.resize(image, size)
        return tf.repeat(image, 3 // image.shape[-1], axis=-1), label

    part = part.map(fitting)
    if training:
        part = part.cache().shuffle(1000, seed=seed).repeat()
    return part.batch(batch_size).prefetch(2)
