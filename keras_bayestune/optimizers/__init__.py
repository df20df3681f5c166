"""Keras optimizers of the two stages."""

from keras_bayestune.optimizers._unscaled import unscaled
from keras_bayestune.optimizers.bayestune_sgld import BayesTuneSGLD
from keras_bayestune.optimizers.sparse import SparseOptimizer

__all__ = ["BayesTuneSGLD", "SparseOptimizer", "unscaled"]
