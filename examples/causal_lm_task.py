"""The language model of `causal_lm.py`: loaded, and compared with its tuned self."""

import keras
import keras_hub

import keras_bayestune as kbt


def load(args):
    """Return the task as it was pre-trained; if it cannot be had, say what to do."""
    try:
        return keras_hub.models.CausalLM.from_preset(args.preset, dtype=args.dtype)
    except (OSError, ValueError) as error:  # no network; no such preset or folder
        raise SystemExit(
            f"Could not load the preset {args.preset!r}: {error}\nA preset by name is "
            "downloaded from Kaggle at the first use. Without network, copy its folder "
            "to this machine and pass it: --preset FOLDER. A folder that transformers "
            "saved will do as well."
        ) from error


def recompute_blocks(backbone):
    """Keep only the input of each block for the way back, and compute the rest again.

    With Keras 3.15 on JAX, keras.RematScope does so for Gemma 3 alone: it takes every
    argument of a block for a tensor, and the other families' blocks have flags.
    """
    for block in backbone.transformer_layers:
        vars(block)["call"] = recomputed(block.call)


def recomputed(call):
    def call_again(x, *args, **kwargs):
        return keras.remat(lambda x: call(x, *args, **kwargs))(x)

    return call_again


def without_preprocessor(task):
    """Return a model of the same layers that takes tokens; it shares the weights."""
    return keras.Model(task.inputs, task.outputs)


def side_by_side(task, file, rows, args):
    """Return the first prompts with the texts of the base and of the tuned model."""
    task.compile(sampler="greedy")
    rows = rows[: args.show]
    prompts = [row["prompt"] for row in rows]

    def texts():
        return task.generate(prompts, max_length=args.sequence_length)

    base = texts()
    if args.method == "full":
        without_preprocessor(task).load_weights(file)
        tuned = texts()
    else:
        with kbt.SparseDelta.load(file).applied(task):
            tuned = texts()
    return [
        {"prompt": row["prompt"], "wanted": row["response"], "base": one, "tuned": two}
        for row, one, two in zip(rows, base, tuned, strict=True)
    ]
