"""Checkpoints from which a run resumes exactly: safetensors and JSON, written completely or not at all."""

from .folder import Checkpoint, CheckpointFolder
from .signals import StopRequest
from .single_file import atomic_path, load_checkpoint, save_checkpoint
from .states import pack_state, unpack_state


__all__ = [
    "Checkpoint",
    "CheckpointFolder",
    "StopRequest",
    "atomic_path",
    "load_checkpoint",
    "pack_state",
    "save_checkpoint",
    "unpack_state",
]
