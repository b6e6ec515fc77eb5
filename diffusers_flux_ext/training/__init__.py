"""Building blocks for training: noise levels, the flow-matching loss, averaged weights, resumable checkpoints."""

from .checkpoint import atomic_path, load_checkpoint, save_checkpoint
from .flow_matching import flow_matching_loss
from .optim import ExponentialMovingAverage, warmup_flat_cosine
from .timesteps import sample_timesteps


__all__ = [
    "ExponentialMovingAverage",
    "atomic_path",
    "flow_matching_loss",
    "load_checkpoint",
    "sample_timesteps",
    "save_checkpoint",
    "warmup_flat_cosine",
]
