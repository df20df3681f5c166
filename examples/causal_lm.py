"""Fine-tune a KerasHub language model on prompts and responses, few scalars or all.

    python examples/causal_lm.py --preset gemma3_instruct_270m --jsonl FILE
    python examples/causal_lm.py --preset FOLDER --jsonl FILE --dtype bfloat16

FILE has one {"prompt": ..., "response": ...} per line; only responses enter the loss.
Gemma 3, Llama 3, Qwen 3 and GPT-2 are tested; any CausalLM of KerasHub that takes text
alone should do. KERAS_BACKEND names the backend. See README.md beside this file, and
docs/language-models.md for what fits in how much memory.
"""

import argparse
import json
import math
import time
from pathlib import Path

from command_line import ShowDefaults


def main(argv=None):
    """Fine-tune, generate with and without the delta, print and save the results."""
    args = arguments(argv)
    # Not above: the help comes without a backend's imports, which take seconds.
    import keras
    from causal_lm_rows import Batches, read_rows, to_arrays
    from causal_lm_task import (
        load,
        recompute_blocks,
        side_by_side,
        without_preprocessor,
    )
    from tuning import METHODS, epochs_of

    keras.utils.set_random_seed(args.seed)
    rows = read_rows(args.jsonl, args.template)
    task = load(args)
    arrays = to_arrays(task.preprocessor, rows, args.sequence_length)
    total = args.finetune_steps
    if args.method == "bayestune":
        total += args.selection_steps
    total = math.prod(epochs_of(total, args).values())
    train = Batches(arrays, args.batch_size, total, args.seed)
    if args.remat:
        recompute_blocks(task.backbone)
    model = without_preprocessor(task)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    goal = {"loss": loss, "weighted_metrics": ["accuracy"]}
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    scalars, file = METHODS[args.method](model, train, goal, args)
    result = {
        "preset": args.preset,
        "method": args.method,
        "trained scalars": scalars,
        "file MB": round(file.stat().st_size / 1e6, 3),
        "seconds": round(time.perf_counter() - start, 1),
    }
    del task, model
    result["texts"] = side_by_side(load(args), file, rows, args)
    (args.out / "result.json").write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        if name != "texts":
            print(f"{name:16} {value}")
    for row in result["texts"]:
        print(*(f"\n{name:>8}: {text}" for name, text in row.items()), sep="")
    return result


def arguments(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ShowDefaults)
    add = parser.add_argument
    add("--preset", default="gemma3_instruct_270m", help="CausalLM preset or folder")
    none = argparse.SUPPRESS  # no default to show
    add("--jsonl", type=Path, required=True, default=none, help="prompts, responses")
    add("--template", default="{prompt}", help="text round each prompt, say of a chat")
    dtypes = ["float32", "mixed_bfloat16", "bfloat16"]
    add("--dtype", choices=dtypes, default=dtypes[0], help="of weights; mixed: float32")
    add("--remat", action="store_true", help="compute activations again going back")
    add(
        "--method",
        choices=["bayestune", "full"],
        default="bayestune",
        help="few or all",
    )
    add("--fraction", type=float, default=0.005, help="of the scalars to train")
    add("--selection-steps", type=int, default=400, help="steps of stage 1")
    add("--finetune-steps", type=int, default=600, help="steps of stage 2, or of full")
    add("--selection-learning-rate", type=float, default=1e-4, help="of stage 1")
    rate = "of stage 2 (default: 1e-3), or of full (default: 1e-4)"
    add("--learning-rate", type=float, default=none, help=rate)
    add("--steps-per-epoch", type=int, default=100, help="of what `fit` calls an epoch")
    add("--backup-dir", default=none, help="folder from which a killed run goes on")
    add("--batch-size", type=int, default=8, help="rows of a step")
    add("--sequence-length", type=int, default=256, help="tokens of a row, both parts")
    add("--show", type=int, default=4, help="prompts to answer at the end")
    add("--seed", type=int, default=0, help="of order, noise and dropout")
    add("--smoke", action="store_true", help="8 + 4 steps on short rows")
    add("--out", type=Path, default=Path("results/causal_lm"), help="results' folder")
    args = parser.parse_args(argv)
    if args.method == "full" and args.dtype == "bfloat16":
        parser.error(
            "--method full leaves bfloat16 weights where they are: Keras's Adam takes "
            "1 - 0.999 in their dtype, where it is 0. Use --dtype mixed_bfloat16."
        )
    if "learning_rate" not in args:
        args.learning_rate = {"bayestune": 1e-3, "full": 1e-4}[args.method]
    if "backup_dir" not in args:
        args.backup_dir = None
    if args.smoke:
        args.selection_steps, args.finetune_steps = 8, 4
        args.batch_size, args.sequence_length, args.show = 4, 16, 2
    return args


if __name__ == "__main__":
    main()
