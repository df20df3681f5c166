"""Keras callbacks."""

from keras_bayestune.callbacks.posterior_draws import PosteriorDraws
from keras_bayestune.callbacks.sparse_mask import SparseMaskCallback

__all__ = ["PosteriorDraws", "SparseMaskCallback"]
