"""The state of the backend's own random generators.

TensorFlow and JAX draw from what Keras keeps in variables. On PyTorch Keras 3.15 leaves
dropout to the generators of PyTorch.
"""

from collections.abc import Sequence

import keras
import numpy as np


def random_state() -> list[np.ndarray]:
    """Return one uint8 array per generator: the CPU's, then those of CUDA devices."""
    if keras.backend.backend() != "torch":
        return []
    import torch

    states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
    return [state.numpy() for state in states]


def set_random_state(states: Sequence[np.ndarray]) -> None:
    """Set what `random_state` returned, as far as there are such devices here."""
    if keras.backend.backend() != "torch" or not states:
        return
    import torch

    cpu, *cuda = (torch.from_numpy(np.array(state)) for state in states)
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(cuda[: torch.cuda.device_count()])
