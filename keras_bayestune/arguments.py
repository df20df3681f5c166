"""Checks of arguments that every layer of the package takes."""

import inspect
import math
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


def check_number(
    name: str, value: Any, interval: str, owner: str = "", hint: str = ""
) -> float:
    """Return `value` as a float, if it is a finite number in the interval.

    Args:
        name: The argument's name.
        value: Python's or NumPy's number; neither `True` nor "1".
        interval: Such as "[0, inf)", "(0, 1]" or "(-inf, inf)".
        owner: Whose argument it is, where the name alone would not tell.
        hint: A sentence or two for the end of the error.
    """
    low, high = map(float, interval[1:-1].split(","))
    try:
        if isinstance(value, bool | np.bool_ | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    above = low < number if interval[0] == "(" else low <= number
    below = number < high if interval[-1] == ")" else number <= high
    if not (above and below):
        words = {
            "(0, inf)": "a finite number above 0",
            "[0, inf)": "a finite number >= 0",
            "(-inf, inf)": "a finite number",
        }
        raise ValueError(
            f"`{name}`{owner and f' of {owner}'} must be "
            f"{words.get(interval, f'in {interval}')}. Received: {name}={value!r} of "
            f"type {type(value).__name__}.{hint and f' {hint}'}"
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
