"""Checks of arguments that every layer of the package takes."""

import inspect
import operator
import random
from typing import Any

import keras
import numpy as np

_END = 2**31  # of what an int32 holds


def check_integer(name: str, value: Any, smallest: int) -> int:
    """Return `value` as an int, if it is an integer in [smallest, 2**31).

    Python's and NumPy's integers are integers (whatever has `__index__`); `True` is
    not, nor is `5.0`, which may be the result of a division that was not meant.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = -1
    if not smallest <= number < _END:
        limit = f" and < {_END}" if number >= _END else ""
        raise ValueError(
            f"`{name}` must be an integer >= {smallest}{limit}. Received: "
            f"{name}={value!r} of type {type(value).__name__}."
        )
    return number


def check_seed(seed: Any) -> int | None:
    """Return `seed` as an int, or `None`."""
    return None if seed is None else check_integer("seed", seed, 0)


def show_arguments(value: Any) -> str:
    """Return the class of `value` with those of its arguments that are not defaults.

    Its attributes go by the names of the constructor's arguments.
    """
    told = []
    for name, parameter in inspect.signature(type(value)).parameters.items():
        argument = vars(value).get(name, parameter.default)
        if isinstance(argument, keras.optimizers.Optimizer):
            told.append(f"{name}={type(argument).__name__}(...)")
        elif argument != parameter.default:
            told.append(f"{name}={argument!r}")
    return f"{type(value).__name__}({', '.join(told)})"


def draw_seed() -> int:
    """Draw a seed as Keras does where none is given.

    From Python's generator, which `keras.utils.set_random_seed` sets.
    """
    return random.randint(1, 10**9)
