"""Training through `predict_velocity`: the module, randomness, losses, averaged weights, resumable checkpoints."""

from .bare import bare_condition
from .batch import TrainingBatch, TrainingSample, stack_conditions
from .checkpoint import atomic_path, load_checkpoint, save_checkpoint
from .draws import Draws
from .flow_matching import flow_matching_loss
from .module import FluxTraining, condition_modules
from .optim import ExponentialMovingAverage, warmup_flat_cosine
from .timesteps import sample_timesteps


__all__ = [
    "Draws",
    "ExponentialMovingAverage",
    "FluxTraining",
    "TrainingBatch",
    "TrainingSample",
    "atomic_path",
    "bare_condition",
    "condition_modules",
    "flow_matching_loss",
    "load_checkpoint",
    "sample_timesteps",
    "save_checkpoint",
    "stack_conditions",
    "warmup_flat_cosine",
]
