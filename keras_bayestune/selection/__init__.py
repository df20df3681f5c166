"""Exact selection of the largest scores of many variables."""

from keras_bayestune.selection.arrays import Subset, index_dtype, to_numpy
from keras_bayestune.selection.ranking import Ranking, Scores, fraction_of, top_k

__all__ = [
    "Ranking",
    "Scores",
    "Subset",
    "fraction_of",
    "index_dtype",
    "to_numpy",
    "top_k",
]
