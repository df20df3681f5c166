"""Saved optimizer state, checked before it is loaded."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

_STATISTIC = "non_trainable_"  # key of the anchors that are not optimizer variables
_OWNER = "owner"  # key of what only our optimizers save: which one, of which mask
_RUN = "run_"  # of the state of the run
_DOCUMENT = "run_document"  # its document, JSON as uint8

Document = dict[str, Any]
Arrays = dict[str, np.ndarray]


class RunState:
    """State of the run that an optimizer serves, saved and loaded together with it.

    Keras saves weights and optimizer variables. Random generators, the counters of a
    callback and what stage 1 found are none of these, so whoever runs the stages
    attaches itself here, and takes back what was loaded.

    Attributes:
        is_attended: Whether somebody makes a mask of what stage 1 samples.
        loaded: Document and arrays that were loaded and not yet taken.
        stage_two: The optimizer variables loaded with them, if those are of stage 2
            and the optimizer is of stage 1.
    """

    def __init__(self) -> None:
        """Begin without a run."""
        self._describe: Callable[[], tuple[Document, Arrays]] | None = None
        self._can_switch = False
        self.is_attended = False
        self.loaded: tuple[Document, Arrays] | None = None
        self.stage_two: Arrays | None = None

    def attach(
        self, describe: Callable[[], tuple[Document, Arrays]], can_switch: bool
    ) -> None:
        """Save what `describe` returns from now on.

        Args:
            describe: Returns a document for JSON, with the "stage", and arrays.
            can_switch: Whether a state of stage 2 will be taken from `stage_two`.
        """
        self._describe, self._can_switch = describe, can_switch
        self.is_attended = True

    def detach(self) -> None:
        """A state of stage 2 is refused from now on by an optimizer of stage 1."""
        self._can_switch = self.is_attended = False

    def take(self) -> tuple[Document, Arrays, Arrays | None] | None:
        """Return what was loaded, once; the last part is `stage_two`."""
        if self.loaded is None:
            return None
        taken = (*self.loaded, self.stage_two)
        self.loaded = self.stage_two = None
        return taken

    def save(self, store: Any) -> None:
        """Add the state of the run to a saved optimizer state."""
        found = self.loaded if self._describe is None else self._describe()
        if found is None:
            return
        document, arrays = found
        text = json.dumps(document, default=str).encode()
        store[_DOCUMENT] = np.frombuffer(text, "uint8")
        for name, array in arrays.items():
            store[f"{_RUN}{name}"] = array

    def split(
        self, store: Any
    ) -> tuple[dict[str, Any], tuple[Document, Arrays] | None]:
        """Return the optimizer's own part of a saved state, and that of the run.

        Raises:
            ValueError: the document is damaged.
        """
        keys = list(store.keys())  # Keras's store is not a mapping
        own = {key: store[key] for key in keys if not key.startswith(_RUN)}
        if _DOCUMENT not in keys:
            return own, None
        try:
            document = json.loads(np.array(store[_DOCUMENT]).tobytes())
            if not isinstance(document, dict):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"The state of the run that was saved with the optimizer is damaged: "
                f"{str(error):.200}. Load another checkpoint."
            ) from error
        arrays = {
            key.removeprefix(_RUN): np.array(store[key])
            for key in keys
            if key.startswith(_RUN) and key != _DOCUMENT
        }
        return own, (document, arrays)

    def keeps_stage_two(
        self, own: Mapping[str, Any], run: tuple[Document, Arrays] | None
    ) -> bool:
        """Put a state of stage 2 aside, if whoever is attached will switch to it."""
        if run is None or run[0].get("stage") != 2 or not self._can_switch:
            return False
        self.loaded = run
        self.stage_two = {key: np.array(value) for key, value in own.items()}
        return True


def save_owner(store: Any, owner: str) -> None:
    """Say in a saved optimizer state whose it is."""
    store[_OWNER] = np.frombuffer(owner.encode(), "uint8")


def is_foreign(store: Mapping[str, Any], optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether another kind of optimizer saved `store`; if so, warn.

    A file of pre-trained weights often has the state of the optimizer that they were
    trained with. Keras's optimizers leave such a state alone with this warning.
    """
    if _OWNER in store:
        return False
    warnings.warn(
        f"Skipping variable loading for optimizer '{optimizer.name}', because it is a "
        f"{type(optimizer).__name__} with {len(optimizer.variables)} variables whereas "
        f"the saved optimizer is of another kind and has {len(store)} variables.",
        stacklevel=3,
    )
    return True


def checked_state(
    store: Mapping[str, Any], variables: Sequence[keras.Variable], owner: str
) -> dict[str, Any]:
    """Return the state of `variables`, or raise a ValueError if it is another's.

    Keras saves optimizer state by position and only warns when the number differs;
    training would then go on from an empty state.
    """
    store = dict(store)
    saved_owner = np.array(store.pop(_OWNER)).tobytes().decode(errors="replace")
    shapes = [tuple(variable.shape) for variable in variables]
    # "10" comes after "9"; what another kind of optimizer saved is not all numbers.
    order = sorted(store.keys(), key=lambda key: (len(key), key))
    saved = [tuple(store[key].shape) for key in order]
    name = owner.split()[0]
    if len(saved) != len(shapes):
        difference = f"{len(saved)} variables instead of {len(shapes)}"
    elif saved != shapes:
        shape, wanted, variable = next(
            triple
            for triple in zip(saved, shapes, variables, strict=True)
            if triple[0] != triple[1]
        )
        difference = f"shape {shape} instead of {wanted} for {variable.path}"
    elif saved_owner.split()[:1] != [name]:
        difference = f"the state of another kind, {saved_owner[:40]!r}"
    elif saved_owner != owner:
        difference = "the scalars of another mask"
    else:
        return store
    raise ValueError(
        f"The saved state does not belong to this {name}: it has {difference}. "
        "It was saved with another model or with other arguments of the optimizer. "
        "Build model and optimizer as they were when the state was saved."
    )


def save_non_trainable(store: Any, anchors: Sequence[np.ndarray]) -> None:
    """Add the anchors of non-trainable variables to a saved optimizer state."""
    for i, anchor in enumerate(anchors):
        store[f"{_STATISTIC}{i}"] = anchor


def split_non_trainable(
    store: Any,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return what Keras saved, and what `save_non_trainable` added to it."""
    keys = list(store.keys())  # Keras's store is not a mapping
    own = {key: store[key] for key in keys if not key.startswith(_STATISTIC)}
    count = len(keys) - len(own)
    return own, [np.array(store[f"{_STATISTIC}{i}"]) for i in range(count)]
