"""Variable paths: the stable key of masks and deltas."""

from collections.abc import Iterable

import keras


def variable_paths(variables: Iterable[keras.Variable]) -> list[str]:
    """Return a path for each variable, in order, each at most once.

    It is Keras's `path`, which is not unique: two towers built by one function share
    theirs, and so do layers that a model builds outside their parents (KerasHub's
    T5). Later ones are told apart by a number at their layer, in the order given:
    `fc1/kernel`, `fc1#2/kernel`. So the path of such a variable depends on the list
    it is in; lists of one model are matched by `match_variables`.

    Args:
        variables: Variables of one model.

    Examples:
        >>> import keras
        >>> towers = [keras.layers.Dense(2, name="fc1") for _ in range(2)]
        >>> for layer in towers:
        ...     layer.build((None, 3))
        >>> variable_paths(towers[0].variables + towers[1].variables)
        ['fc1/kernel', 'fc1/bias', 'fc1#2/kernel', 'fc1#2/bias']
    """
    paths = [variable.path for variable in variables]
    taken, latest = set(paths), dict.fromkeys(paths, 0)
    unique = []
    for path in paths:
        latest[path] += 1
        key = path
        while latest[path] > 1 and key in taken:
            layer, slash, name = path.rpartition("/")
            number = f"#{latest[path]}"
            key = f"{layer}{number}/{name}" if slash else f"{name}{number}"
            latest[path] += key in taken
        taken.add(key)
        unique.append(key)
    return unique


def variables_by_path(
    variables: Iterable[keras.Variable],
) -> dict[str, keras.Variable]:
    """Return `{path: variable}` with the paths of `variable_paths`."""
    variables = list(variables)
    return dict(zip(variable_paths(variables), variables, strict=True))


def layer_of(path: str) -> str:
    """Return the layer that holds a variable: its path up to the last "/"."""
    return path.rpartition("/")[0] or path
