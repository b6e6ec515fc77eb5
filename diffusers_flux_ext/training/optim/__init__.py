"""Optimizers, schedules of the learning rate, averages of weights, and training in 16 bits."""

from .build import OptimizerSettings, averaged_weights, build_optimizer, check_optimizer, clip_gradients
from .ema import ExponentialMovingAverage
from .fused import FusedBackward
from .groups import GroupRule, parameter_groups
from .rounding import RoundedOptimizer
from .rules import round_stochastically
from .schedules import Schedule, schedule, set_rates, warmup_flat_cosine
from .stepping import steps_by_parameter


__all__ = [
    "ExponentialMovingAverage",
    "FusedBackward",
    "GroupRule",
    "OptimizerSettings",
    "RoundedOptimizer",
    "Schedule",
    "averaged_weights",
    "build_optimizer",
    "check_optimizer",
    "clip_gradients",
    "parameter_groups",
    "round_stochastically",
    "schedule",
    "set_rates",
    "steps_by_parameter",
    "warmup_flat_cosine",
]
