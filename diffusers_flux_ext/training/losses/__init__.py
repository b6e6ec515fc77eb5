"""The parts of the loss: distributions of noise levels, weights by noise level, errors."""

from .errors import Errors, errors
from .levels import Levels, ShiftedLevels, draw_levels, levels, round_to
from .weights import ScaledWeighting, Weighting, quantiles, weighting


__all__ = [
    "Errors",
    "Levels",
    "ScaledWeighting",
    "ShiftedLevels",
    "Weighting",
    "draw_levels",
    "errors",
    "levels",
    "quantiles",
    "round_to",
    "weighting",
]
