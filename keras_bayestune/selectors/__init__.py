"""Selectors: rules that score every scalar by how much it is worth moving."""

from keras_bayestune.selectors.activation_magnitude import ActivationMagnitude
from keras_bayestune.selectors.bitfit import BitFit
from keras_bayestune.selectors.fisher import Fisher
from keras_bayestune.selectors.gradient_sum import GradientSum
from keras_bayestune.selectors.low_rank_magnitude import LowRankMagnitude
from keras_bayestune.selectors.magnitude import Magnitude
from keras_bayestune.selectors.movement import Movement
from keras_bayestune.selectors.random import Random
from keras_bayestune.selectors.scale import ScaleSelector
from keras_bayestune.selectors.selector import Selector
from keras_bayestune.selectors.small_magnitude import SmallMagnitude
from keras_bayestune.selectors.snip import SNIP

__all__ = [
    "SNIP",
    "ActivationMagnitude",
    "BitFit",
    "Fisher",
    "GradientSum",
    "LowRankMagnitude",
    "Magnitude",
    "Movement",
    "Random",
    "ScaleSelector",
    "Selector",
    "SmallMagnitude",
]
