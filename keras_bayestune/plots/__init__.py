"""Plots of scales, masks, traces, errors, reliability; matplotlib comes when called."""

from keras_bayestune.plots.error_vs_sparsity import (
    plot_error_vs_sparsity as plot_error_vs_sparsity,
)
from keras_bayestune.plots.mask import plot_mask as plot_mask
from keras_bayestune.plots.reliability_diagram import (
    plot_reliability as plot_reliability,
)
from keras_bayestune.plots.scales import plot_scales as plot_scales
from keras_bayestune.plots.trace import plot_trace as plot_trace

__all__ = [
    "plot_error_vs_sparsity",
    "plot_mask",
    "plot_reliability",
    "plot_scales",
    "plot_trace",
]
