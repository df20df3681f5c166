"""Keras callbacks."""

from keras_bayestune.callbacks.sparse_mask import SparseMaskCallback

__all__ = ["SparseMaskCallback"]
