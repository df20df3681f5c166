"""Budgets: which scalars compete with which for a place in the mask."""

from keras_bayestune.budgets.budget import Budget
from keras_bayestune.budgets.by_pattern import ByPattern
from keras_bayestune.budgets.global_budget import Global
from keras_bayestune.budgets.per_layer import PerLayer
from keras_bayestune.budgets.per_neuron import PerNeuron
from keras_bayestune.budgets.per_tensor import PerTensor
from keras_bayestune.budgets.relative import Relative

__all__ = [
    "Budget",
    "ByPattern",
    "Global",
    "PerLayer",
    "PerNeuron",
    "PerTensor",
    "Relative",
]
