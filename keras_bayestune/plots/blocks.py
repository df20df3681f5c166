"""Numbered blocks of a model, and what is inside them, by their paths."""

import re


def shared_length(owners: list[tuple[str, ...]]) -> int:
    """Number of leading parts that all owners have in common."""
    shared = 0
    for parts in zip(*owners, strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return shared


def blocks(owners: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Cut each owner behind its first part that is one of a numbered row of parts."""
    siblings: dict[tuple[tuple[str, ...], str], set[str]] = {}
    for owner in owners.values():
        for i, part in enumerate(owner):
            key = owner[:i], _without_number(part)
            siblings.setdefault(key, set()).add(part)

    def depth(owner: tuple[str, ...]) -> int:
        for i, part in enumerate(owner):
            if len(siblings[owner[:i], _without_number(part)]) > 1:
                return i + 1
        return len(owner)

    return {path: owner[: depth(owner)] for path, owner in owners.items()}


def _without_number(part: str) -> str:
    return re.sub(r"\d+", "", part)


def names_inside(inside: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """The shortest end of each place in a block that no other place has."""
    places = {place for place in inside.values() if place}
    names = {}
    for path, place in inside.items():
        for length in range(1, len(place) + 1):
            end = place[-length:]
            if sum(other[-length:] == end for other in places) == 1:
                break
        if place:
            names[path] = "/".join(end)
    return names
