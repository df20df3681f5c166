"""Count what a training step asks of the device, without a GPU at hand.

On PyTorch: the operations of the optimizer's part of a step, from the gradients to the
end of `optimizer.apply`. Each is a kernel on a GPU, unless it only makes a view or an
empty tensor. On JAX and TensorFlow: the fusions of the whole compiled step, which
become kernels. The model is a BERT of 12 layers and tiny width. Example:

    KERAS_BACKEND=torch python -m benchmarks.dispatch
"""

import argparse
import re
from collections.abc import Callable
from typing import Any

import keras

from benchmarks.step import (
    METHODS,
    build_model,
    compact_training,
    random_batch,
    train,
)

NAMES = ["sgd", "adam", "stage 1", "stage 2", "stage 2, compact"]
TOKENS = 8


def compiled_model(name: str) -> keras.Model:
    """A tiny BERT under one of the methods of `benchmarks.step`."""
    model = build_model("tiny", TOKENS)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(METHODS[name](model), loss)
    model.optimizer.build(model.trainable_variables)
    return model


def torch_counts(name: str) -> dict[str, int]:
    """Operations, kernels, copies to the device and waits of the optimizer's part."""
    from torch.utils._python_dispatch import TorchDispatchMode

    operations: list[Any] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            operations.append(function)
            return function(*args, **(kwargs or {}))

    def recorded(apply: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            with Record():
                return apply(*args, **kwargs)

        return record

    model = compiled_model(name)
    training = compact_training(model, name, True)
    batch = random_batch(2, TOKENS)
    train(model, training, *batch)  # what is done once is not counted
    model.optimizer.apply = recorded(model.optimizer.apply)
    train(model, training, *batch)
    names = [str(function) for function in operations]
    copies = sum("lift_fresh" in name for name in names)
    waits = sum("_local_scalar_dense" in name for name in names)
    silent = sum(
        function.is_view or "empty" in name or "lift_fresh" in name
        for function, name in zip(operations, names, strict=True)
    )
    return {
        "operations": len(names),
        "kernels": len(names) - silent - waits,
        "copies to the device": copies,
        "waits for the device": waits,
    }


def compiled_counts(name: str) -> dict[str, int]:
    """Fusions of the whole step as XLA compiles it."""
    model = compiled_model(name)
    training = compact_training(model, name, True)
    x, y = random_batch(2, TOKENS)
    gradients = training.gradients
    if gradients is None or not gradients.layers:
        text = _optimized(model, x, y)
    else:
        with gradients._probed_step():
            text = _optimized(model, x, y)
    return {"fusions": len(re.findall(r" fusion\(", text))}


def _optimized(model: keras.Model, x: Any, y: Any) -> str:
    if keras.backend.backend() == "jax":
        import jax

        model._symbolic_build(data_batch=(x, y))
        state = model._get_jax_state(
            trainable_variables=True,
            non_trainable_variables=True,
            optimizer_variables=True,
            metrics_variables=True,
        )
        step = jax.jit(model.train_step, donate_argnums=0)
        return step.lower(state, (x, y)).compile().as_text()
    import tensorflow as tf

    model._symbolic_build(data_batch=(x, y))
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    batch = tf.nest.map_structure(tf.constant, (x, y))
    return step.experimental_get_compiler_ir(batch)(stage="optimized_hlo")


def counts(name: str) -> dict[str, int]:
    """What is counted on the backend in use, for one method."""
    count = torch_counts if keras.backend.backend() == "torch" else compiled_counts
    return count(name)


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=NAMES)
    print(keras.backend.backend())
    for name in parser.parse_args().methods:
        found = ", ".join(f"{count} {what}" for what, count in counts(name).items())
        print(f"{name:<22}{found}", flush=True)


if __name__ == "__main__":
    main()
