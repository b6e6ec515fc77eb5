"""Scripts written for DiffSynth-Studio, after one changed line.

    from diffusers_flux_ext.diffsynth import ControlNetInput, FluxImagePipeline, ModelConfig, load_state_dict

See `docs/migration.md`.
"""

from .annotator import Annotator
from .inputs import ControlNetInput, load_state_dict
from .model_config import ModelConfig
from .older import ControlNetConfigUnit, ModelManager
from .pipeline import FluxImagePipeline


__all__ = [
    "Annotator",
    "ControlNetConfigUnit",
    "ControlNetInput",
    "FluxImagePipeline",
    "ModelConfig",
    "ModelManager",
    "load_state_dict",
]
