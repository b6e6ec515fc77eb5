"""What can be trained, and the files that it becomes."""

from .export import export_lora, export_module
from .full import TrainedWeights
from .info import ExportInfo
from .lora import TrainedLoRA, add_lora
from .modules import TrainedModule
from .options import LoRAOptions
from .presets import LORA_PRESETS
from .protocol import Trained, mark_trainable
from .scratch import from_scratch, trainable_modules
from .strengths import Strengths
from .together import TrainedTogether
from .underlay import fuse_under, lay_under
from .widen import INPUT_CHANNELS, widen_x_embedder


__all__ = [
    "INPUT_CHANNELS",
    "LORA_PRESETS",
    "ExportInfo",
    "LoRAOptions",
    "Strengths",
    "Trained",
    "TrainedLoRA",
    "TrainedModule",
    "TrainedTogether",
    "TrainedWeights",
    "add_lora",
    "export_lora",
    "export_module",
    "from_scratch",
    "fuse_under",
    "lay_under",
    "mark_trainable",
    "trainable_modules",
    "widen_x_embedder",
]
