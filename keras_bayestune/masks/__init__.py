"""Masks: which scalars of a model are selected."""

from keras_bayestune.masks.sparse_mask import SparseMask

__all__ = ["SparseMask"]
