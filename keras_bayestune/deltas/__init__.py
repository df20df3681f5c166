"""Deltas: what a user keeps, ships and combines."""

from keras_bayestune.deltas._conflicts import Conflicts, conflicts
from keras_bayestune.deltas._dare import dare
from keras_bayestune.deltas._ties import ties
from keras_bayestune.deltas._weighted_sum import weighted_mean, weighted_sum
from keras_bayestune.deltas.delta import SparseDelta
from keras_bayestune.deltas.delta_set import DeltaSet
from keras_bayestune.deltas.export import save_merged
from keras_bayestune.deltas.model_variables import base_values
from keras_bayestune.deltas.quantized import QuantizedBase

__all__ = [
    "Conflicts",
    "DeltaSet",
    "QuantizedBase",
    "SparseDelta",
    "base_values",
    "conflicts",
    "dare",
    "save_merged",
    "ties",
    "weighted_mean",
    "weighted_sum",
]
