"""Fine-tune a KerasHub image classifier on a VTAB-1k task: few scalars, or all.

    python examples/vtab.py --task cifar100
    python examples/vtab.py --task dtd --preset efficientnet_b0_ra_imagenet

VTAB-1k (Zhai et al., "A Large-scale Study of Representation Learning with the Visual
Task Adaptation Benchmark", 2019): 800 images to train on, 200 to validate. TFDS
downloads the data, and KerasHub the weights. KERAS_BACKEND names the backend.
"""

import argparse
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
    from tuning import METHODS
    from vtab_tasks import TASKS, batches, load, majority

    if args.task not in TASKS:
        sys.exit(f"--task must be one of {', '.join(TASKS)}. Received: {args.task}.")
    keras.utils.set_random_seed(args.seed)
    try:
        parts, classes = load(args.task, args.data_dir)
        model = keras_hub.models.ImageClassifier.from_preset(
            args.preset, num_classes=classes
        )
    except OSError as error:
        sys.exit(
            f"Data or weights could not be loaded: {error}\nWithout network, "
            "--data-dir names a folder in which TFDS has prepared the data set, and "
            "--preset a folder with the weights."
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
    scalars, file = METHODS[args.method](model, train, goal, args)
    result = {"task": args.task, "method": args.method, "trained scalars": scalars}
    result["seconds"] = round(time.perf_counter() - start, 1)
    for name, part, data in zip(
        ("validation", "test"), parts[1:], held_out, strict=True
    ):
        found = model.evaluate(data, verbose=0, return_dict=True)
        result[f"{name} accuracy"] = round(found["accuracy"], 4)
        constant = majority(parts[0], part)
        result[f"{name} accuracy of the majority class"] = round(constant, 4)
    result["file MB"] = round(file.stat().st_size / 1e6, 3)
    save_and_print(args.out, result)
    return result


def arguments(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ShowDefaults)
    add = parser.add_argument
    none = argparse.SUPPRESS  # no default to show
    add("--task", default="cifar100", help="one of the 19 of vtab_tasks.py")
    add("--data-dir", default=none, help="where TFDS keeps its data sets")
    add("--preset", default="vit_base_patch16_224_imagenet", help="or a folder")
    add_training(add, selection_steps=600, finetune_steps=1000)
    add("--batch-size", type=int, default=32, help="images of a step")
    add("--seed", type=int, default=0, help="of order, noise and dropout")
    add("--smoke", action="store_true", help="8 + 4 steps")
    add("--out", type=Path, default=Path("results/vtab"), help="folder for the results")
    unset = dict.fromkeys(("data_dir", "backup_dir", "learning_rate"))
    args = parser.parse_args(argv, argparse.Namespace(**unset))
    if args.smoke:
        args.selection_steps, args.finetune_steps, args.batch_size = 8, 4, 4
    return args


if __name__ == "__main__":
    main()
