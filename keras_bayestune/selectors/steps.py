"""How long a selector runs: checks of its arguments."""

from typing import Any

from keras_bayestune.arguments import check_integer


def check_steps(name: str, value: Any) -> int | None:
    """Return `None` or an integer of at least 1."""
    return None if value is None else check_integer(name, value, 1)


def check_head_steps(value: Any) -> int:
    """Return an integer of at least 0."""
    return check_integer("head_steps", value, 0)


def check_duration(epochs: Any, steps: Any) -> tuple[int | None, int | None]:
    """Return both, if exactly one of the two is given, and at least 1."""
    epochs, steps = check_steps("epochs", epochs), check_steps("steps", steps)
    if (epochs is None) == (steps is None):
        raise ValueError(
            "Give either `epochs` or `steps`, which say how long to train. Received: "
            f"epochs={epochs}, steps={steps}."
        )
    return epochs, steps
