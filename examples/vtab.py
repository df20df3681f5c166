"""Fine-tune a KerasHub image classifier on a VTAB-1k task: few scalars, or all.

    python examples/vtab.py --task cifar100
    python examples/vtab.py --task dtd --preset efficientnet_b0_ra_imagenet

VTAB-1k (Zhai et al., "A Large-scale Study of Representation Learning with the Visual
Task Adaptation Benchmark", 2019): 800 images to train on, 200 to validate. TFDS
downloads the data, and KerasHub the weights. KERAS_BACKEND names the backend.
"""

import argparse
import json
import time
from pathlib import Path

import keras
import keras_hub
from tuning import tune_all, tune_few
from vtab_tasks import TASKS, batches, load


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
    scalars, file = tune(model, train, goal, args)
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
