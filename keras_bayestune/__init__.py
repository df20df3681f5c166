"""Bayesian sparse fine-tuning for Keras 3."""

from keras_bayestune import budgets, selectors, uncertainty
from keras_bayestune._fine_tune import fine_tune
from keras_bayestune._sweep import sweep
from keras_bayestune._switch import switch
from keras_bayestune._version import __version__
from keras_bayestune.callbacks import SparseMaskCallback
from keras_bayestune.chains import run_chains
from keras_bayestune.deltas import SparseDelta
from keras_bayestune.masks import SparseMask
from keras_bayestune.optimizers import BayesTuneSGLD, SparseOptimizer
from keras_bayestune.plots import (
    plot_error_vs_sparsity,
    plot_mask,
    plot_reliability,
    plot_scales,
    plot_trace,
)
from keras_bayestune.priors import LaplacePrior, WithPrior
from keras_bayestune.samplers import Authors, Collapsed, JointLangevin

__all__ = [
    "Authors",
    "BayesTuneSGLD",
    "Collapsed",
    "JointLangevin",
    "LaplacePrior",
    "SparseDelta",
    "SparseMask",
    "SparseMaskCallback",
    "SparseOptimizer",
    "WithPrior",
    "__version__",
    "budgets",
    "fine_tune",
    "plot_error_vs_sparsity",
    "plot_mask",
    "plot_reliability",
    "plot_scales",
    "plot_trace",
    "run_chains",
    "selectors",
    "sweep",
    "switch",
    "uncertainty",
]
