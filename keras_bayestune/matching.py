"""How saved variables find those of the model at hand, by their paths."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import keras

from keras_bayestune.paths import variables_by_path

Shapes = Mapping[str, tuple[int, ...]]

# Keras numbers automatic names `dense`, `dense_1`, `dense_2`, ...: never `_0`. A number
# after `#` is ours, of layers that share a path.
_NAME = re.compile(
    r"(?P<base>.*?)(?:_(?P<number>[1-9][0-9]*))?(?:#(?P<twin>[0-9]+))?", re.DOTALL
)
_RANK = re.compile(r"(#[0-9]+)+(?=/|$)")
_LISTED = 5


def match_variables(
    saved: Shapes, variables: Iterable[keras.Variable]
) -> dict[str, keras.Variable]:
    """Return `{saved path: variable}`, matched as `match_paths` does.

    Args:
        saved: Shape of each saved variable by path.
        variables: Those of the model at hand, in its order.

    Raises:
        ValueError: As `match_paths`.
    """
    present = variables_by_path(variables)
    matched = match_paths(saved, {path: v.shape for path, v in present.items()})
    return {path: present[here] for path, here in matched.items()}


def saved_paths(saved: Shapes, variables: Iterable[keras.Variable]) -> list[str]:
    """Return the path that each variable had when `saved` was, for patterns.

    A pattern such as "/head/" was written for these. Where Keras calls a variable
    otherwise in a loaded model, the pattern still means the same one.

    Args:
        saved: Shape of each variable by path, empty if nothing was saved.
        variables: Those of the model at hand, in its order.

    Returns:
        Paths in order; those of `variable_paths` if `saved` is of another model.
    """
    present = variables_by_path(variables)
    try:
        matched = match_variables(saved, present.values())
    except ValueError:
        return list(present)
    before = {id(variable): path for path, variable in matched.items()}
    return [before.get(id(variable), path) for path, variable in present.items()]


def match_paths(saved: Shapes, present: Shapes) -> dict[str, str]:
    """Map every saved variable path to a path of the model at hand.

    Tried in this order; the first rule that covers *every* saved path is used:

    1. Identical paths of equal shapes. Variables that only `present` has are
       allowed, unless one of them has the same shape and the same automatic name but
       for its number (`dense` beside `dense_1`): then the numbers may have shifted
       and the match would be a guess.
    2. The leading components that all paths of a side share are stripped, so
       `bert/pooled/kernel` is `pooled/kernel`. The layer's own name stays.
    3. As 2, with automatic numbers replaced by their rank among the siblings of the
       same name: `dense_5`, `dense_7` are `dense`, `dense_1`. Names that start
       at `_0` are not automatic and stay as they are.
    4. In order. When Keras loads a `.keras` file, layers within a `Sequential` or a
       subclassed model may lose the names of what they lie in: `net/head/kernel` is
       then `head/kernel`, beside `net_1/scale`, a weight of `net` itself. The order
       stays. Each pair must agree but for components that one side lacks and for
       automatic numbers, and these must rise together.

    Rules 2 to 4 need complete coverage: both sides hold the same number of
    variables and each one finds its partner with an equal shape. Otherwise a
    part of one model could silently match another part of the other.

    Args:
        saved: Shape of each saved variable by path, in the model's order.
        present: Shape of each variable of the model at hand by path, in its order.

    Returns:
        `{saved path: present path}`, one to one, in the order of `saved`.

    Raises:
        ValueError: No rule covers every saved path, or a match is ambiguous. The
            message lists what is missing, extra or of another shape.

    Examples:
        >>> match_paths(
        ...     {"dense_5/kernel": (4, 3), "dense_7/kernel": (3, 2)},
        ...     {"dense/kernel": (4, 3), "dense_1/kernel": (3, 2)},
        ... )
        {'dense_5/kernel': 'dense/kernel', 'dense_7/kernel': 'dense_1/kernel'}
    """
    saved = {path: tuple(shape) for path, shape in saved.items()}
    present = {path: tuple(shape) for path, shape in present.items()}
    if all(present.get(path) == shape for path, shape in saved.items()):
        _check_not_ambiguous(saved, present)
        return {path: path for path in saved}

    keys_by_rule = [
        ({path: path for path in saved}, {path: path for path in present}),
        (_stripped(saved), _stripped(present)),
        (_renumbered(_stripped(saved)), _renumbered(_stripped(present))),
    ]
    differences = []
    for saved_keys, present_keys in keys_by_rule:
        by_key = {key: path for path, key in present_keys.items()}
        missing = [path for path, key in saved_keys.items() if key not in by_key]
        extra = set(by_key) - set(saved_keys.values())
        reshaped = [
            (path, by_key[key])
            for path, key in saved_keys.items()
            if key in by_key and saved[path] != present[by_key[key]]
        ]
        if not (missing or extra or reshaped):
            return {path: by_key[key] for path, key in saved_keys.items()}
        extra_paths = [path for path, key in present_keys.items() if key in extra]
        differences.append((missing, extra_paths, reshaped))
    if _fits_in_order(saved, present):
        return dict(zip(saved, present, strict=True))
    # The rule that came nearest tells the user most, unless it calls one path missing
    # here and found here only: what it strips differs.
    told = [found for found in differences if not {*found[0]} & {*found[1]}]
    differences = told or differences
    missing, extra_paths, reshaped = min(
        differences, key=lambda lists: sum(len(items) for items in lists)
    )
    lines = [
        "The saved variables do not match this model's: "
        f"{len(saved)} saved, {len(present)} in this model."
    ]
    if missing:
        lines.append(f"Missing in this model: {_listing(missing)}.")
    if extra_paths:
        lines.append(f"Only in this model: {_listing(extra_paths)}.")
    if reshaped:
        shapes = [
            f"{path} {saved[path]} here {present[other]}"
            + ("" if path == other else f" ({other})")
            for path, other in reshaped
        ]
        lines.append(f"Of another shape: {_listing(shapes)}.")
    lines.append("Use a model of the architecture that the saved variables came from.")
    raise ValueError(" ".join(lines))


def _fits_in_order(saved: Shapes, present: Shapes) -> bool:
    """Whether the variables are the same in order, but for what Keras drops."""
    if list(saved.values()) != list(present.values()):
        return False
    saved_kinds, present_kinds = _kinds(saved), _kinds(present)
    renumbered = defaultdict(list)
    for path, here in zip(saved, present, strict=True):
        kinds = saved_kinds[path], present_kinds[here]
        if not _is_within(*kinds):
            return False
        if not _is_within(path, here):
            renumbered[kinds].append((_numbers(path), _numbers(here)))
    # Layers of one kind fit in any order, and a mask may have lost the model's.
    orders = ([here for _, here in sorted(pairs)] for pairs in renumbered.values())
    return all(order == sorted(order) for order in orders)


def _check_not_ambiguous(saved: Shapes, present: Shapes) -> None:
    """Raise if a shifted automatic number fits an identical match as well."""
    kinds = _kinds(present)
    wanted = defaultdict(list)
    for path, shape in saved.items():
        wanted[kinds[path], shape].append(path)
    rivals = [
        f"{path} beside {wanted[key][0]}"
        for path, shape in present.items()
        if path not in saved and (key := (kinds[path], shape)) in wanted
    ]
    if rivals:
        raise ValueError(
            f"The match is ambiguous: the {len(saved)} saved variables are part of "
            f"the {len(present)} of this model, and this model has more variables of "
            "the same shape and automatic name, so the numbers may have shifted: "
            f"{_listing(rivals)}. Save every variable (with no selected position where "
            "nothing is selected), or give the layers names of their own."
        )


def _stripped(paths: Iterable[str]) -> dict[str, str]:
    """`{path: path without the leading components that all paths share}`."""
    split = {path: path.split("/") for path in paths}
    # The last two components name the layer and the variable: without them, `query`
    # of one model would match `key` of another. A weight of the model itself lies
    # beside its layers, and has one only.
    lengths = [len(parts) for parts in split.values()] or [0]
    limit = min(min(lengths) - 1, max(lengths) - 2)
    shared = 0
    while shared < limit and len({parts[shared] for parts in split.values()}) == 1:
        shared += 1
    return {path: "/".join(parts[shared:]) for path, parts in split.items()}


def _renumbered(keys: Mapping[str, str]) -> dict[str, str]:
    """`{path: key with automatic numbers replaced by #rank among siblings}`."""
    siblings = defaultdict(set)
    for key in keys.values():
        parts = key.split("/")
        for depth, part in enumerate(parts):
            siblings[tuple(parts[:depth])].add(part)
    new_names = {parent: _ranked(names) for parent, names in siblings.items()}
    return {
        path: "/".join(
            new_names[tuple(parts[:depth])][part] for depth, part in enumerate(parts)
        )
        for path, parts in ((path, key.split("/")) for path, key in keys.items())
    }


def _ranked(names: set[str]) -> dict[str, str]:
    """`{name: name with its automatic number replaced by its rank}`."""
    groups = defaultdict(list)
    for name in names:
        groups[_parsed(name)["base"]].append((_number(name), name))
    return {
        name: name if f"{base}_0" in names else f"{base}#{rank}"
        for base, members in groups.items()
        for rank, (_, name) in enumerate(sorted(members))
    }


def _parsed(name: str) -> dict[str, str]:
    return _NAME.fullmatch(name).groupdict("0")  # type: ignore[union-attr]


def _number(name: str) -> tuple[int, int]:
    """The numbers at the end of a name: automatic, and among layers of one path."""
    parts = _parsed(name)
    return int(parts["number"]), int(parts["twin"])


def _numbers(path: str) -> list[tuple[int, int]]:
    return [_number(name) for name in path.split("/")]


def _kinds(paths: Iterable[str]) -> dict[str, str]:
    """`{path: path without automatic numbers}`."""
    keys = _renumbered({path: path for path in paths})
    return {path: _RANK.sub("", key) for path, key in keys.items()}


def _is_within(one: str, other: str) -> bool:
    """Whether a path is the other with components left out, but not the last two."""
    short, long = sorted((one.split("/"), other.split("/")), key=len)
    rest = iter(long)
    return short[-2:] == long[-2:] and all(part in rest for part in short)


def _listing(items: Sequence[str]) -> str:
    """The first few items, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:_LISTED])
    more = len(items) - _LISTED
    return f"{shown} and {more} more" if more > 0 else shown
