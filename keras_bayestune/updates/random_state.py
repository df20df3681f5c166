"""The states of the global random generators that a run draws from.

Layers keep theirs in variables, which are saved with the model; on PyTorch Keras 3.15
leaves dropout to the generators of PyTorch. The order of shuffled arrays comes from
NumPy on JAX, from PyTorch there; data sets in Python also ask `random`. What tf.data
draws from cannot be read.
"""

import random
from collections.abc import Sequence

import keras
import numpy as np
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.random.seed_generator import (
    GLOBAL_SEED_GENERATOR,
    global_seed_generator,
)


def random_state() -> list[np.ndarray]:
    """Return Python's, NumPy's and Keras's states, on PyTorch its devices' as well."""
    version, words, gauss = random.getstate()
    _, keys, place, has_gauss, normal = np.random.get_state(legacy=True)
    unseeded = get_global_attribute(GLOBAL_SEED_GENERATOR)
    seeds = [] if unseeded is None else keras.ops.convert_to_numpy(unseeded.state)
    states = [
        np.array([version, *words], "uint32"),
        np.array([] if gauss is None else [gauss]),
        np.array([*keys, place], "uint32"),
        np.array([normal] if has_gauss else []),
        np.array(seeds),
    ]
    if keras.backend.backend() == "torch":
        import torch

        generators = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        states += [state.numpy() for state in generators]
    return states


def set_random_state(states: Sequence[np.ndarray]) -> None:
    """Set what `random_state` returned, as far as there are such devices here.

    Raises:
        ValueError: they are not such states; some may have been set.
    """
    try:
        _set(*states)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"The states of the random generators do not fit together: {error}."
        ) from error


def _set(
    python: np.ndarray,
    gauss: np.ndarray,
    numpy: np.ndarray,
    normal: np.ndarray,
    unseeded: np.ndarray,
    *of_torch: np.ndarray,
) -> None:
    if unseeded.size:
        global_seed_generator().state.assign(unseeded)
    version, *words = python.tolist()
    random.setstate((version, tuple(words), *(gauss.tolist() or [None])))
    *keys, place = numpy.tolist()
    left = (1, *normal.tolist()) if normal.size else (0, 0.0)
    np.random.set_state(("MT19937", np.array(keys, "uint32"), place, *left))
    if keras.backend.backend() != "torch" or not of_torch:
        return
    import torch

    cpu, *cuda = (torch.from_numpy(np.array(state)) for state in of_torch)
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(cuda[: torch.cuda.device_count()])
