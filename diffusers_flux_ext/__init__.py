"""FLUX.1 methods that diffusers lacks, as ordinary diffusers pipelines that compose.

Public names are imported on first use, so `import diffusers_flux_ext` costs neither torch nor diffusers.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from ._registration import register


if TYPE_CHECKING:
    from .attention.image_prompts import ImagePrompt
    from .attention.plan import AttentionPlan, build_attention_plan
    from .attention.processor import FluxRegionalAttnProcessor, regional_attention
    from .caches.tea_cache import TeaCacheConfig, apply_tea_cache, remove_tea_cache
    from .canvas import Canvas
    from .condition import EncodedConditions, FluxCondition
    from .denoise import DenoisingStep, PlanCache, PromptEmbeds, extend_prompt, predict_velocity
    from .diffsynth.vram import vram_plan_from_diffsynth
    from .guidance import combine_velocities
    from .inputs.qwen_vl import QwenVLProcessor
    from .lora.errors import LoRAError
    from .lora.loading.load import load_lora, unload_lora
    from .lora.loading.mixin import FluxExtLoraLoaderMixin
    from .lora.loading.timestep import bake_timestep_lora, load_timestep_lora
    from .lora.tools.algebra import LoRAResult, merge_loras, resize_lora
    from .lora.tools.convert import convert_lora, convert_lora_file
    from .lora.tools.extract import extract_lora
    from .lora.tools.fuse import fuse_lora_into
    from .lora.tools.report import LoRAReport, detect_lora_format, inspect_lora
    from .methods.attribute_control.condition import AttributeValues
    from .methods.attribute_control.encoder import AttributeValueEncoder
    from .methods.attribute_control.pipeline import FluxAttributeControlPipeline
    from .methods.control.condition import ControlNetImage
    from .methods.control.model import FluxExtControlNetModel
    from .methods.eligen.condition import EntityRegions
    from .methods.eligen.pipeline import FluxEliGenPipeline
    from .methods.fill.condition import FillMask
    from .methods.flex.condition import FlexControl
    from .methods.flex.pipeline import FluxFlexPipeline
    from .methods.infinite_you.condition import InfiniteYouIdentity
    from .methods.infinite_you.faces import FaceEmbedding, FaceEncoder
    from .methods.infinite_you.insightface import InsightFaceEncoder
    from .methods.infinite_you.keypoints import draw_face_keypoints
    from .methods.infinite_you.pipeline import FluxInfiniteYouPipeline, infinite_you_preset
    from .methods.infinite_you.projector import InfiniteYouImageProjector
    from .methods.inpaint.condition import InpaintRegion
    from .methods.insert_anything.pipeline import FluxInsertAnythingPipeline
    from .methods.ip_adapter.condition import IPAdapterImages
    from .methods.ip_adapter.model import FluxIPAdapter
    from .methods.lora_encoder.condition import LoRAEmbedding
    from .methods.lora_encoder.model import FluxLoRAEncoder
    from .methods.lora_encoder.pipeline import FluxLoRAEncoderPipeline
    from .methods.lora_fusion.gates import FluxLoRAFusion
    from .methods.lora_fusion.hook import disable_lora_fusion, enable_lora_fusion
    from .methods.nexus_gen.adapter import NexusGenAdapter
    from .methods.nexus_gen.condition import NexusGenEmbedding
    from .methods.nexus_gen.decoder import load_nexus_gen_decoder
    from .methods.nexus_gen.language_model import NexusGenModel
    from .methods.nexus_gen.merger import NexusGenEditingMerger
    from .methods.nexus_gen.pipeline import FluxNexusGenPipeline
    from .methods.redux.checkpoint import load_redux_embedder
    from .methods.redux.condition import ReduxImages
    from .methods.references.condition import ReferenceImages
    from .methods.step1x_edit.condition import Step1XInstruction
    from .methods.step1x_edit.connector import Step1XConnector
    from .methods.step1x_edit.pipeline import FluxStep1XEditPipeline
    from .models.autoencoder_kl_flux import AutoencoderKLFlux
    from .models.transformer_flux_ext import FluxExtTransformer2DModel
    from .offload.budget.api import (
        VRAMBudgetError,
        VRAMPlan,
        apply_vram_plan,
        disable_vram_budget,
        memory_report,
        plan_vram,
    )
    from .offload.disk.api import (
        disk_streaming_stats,
        load_streamed,
        release_disk_buffers,
        stop_disk_streaming,
        stream_from_disk,
    )
    from .offload.disk.stream import DiskStreamingStats
    from .pipeline.conditioned import FluxConditionedPipeline
    from .schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler
    from .sequence import AttentionRule, Contribution, TokenGroup

_MODULES = {
    "attention.plan": ["AttentionPlan", "build_attention_plan"],
    "methods.attribute_control.condition": ["AttributeValues"],
    "condition": ["EncodedConditions", "FluxCondition"],
    "methods.control.condition": ["ControlNetImage"],
    "methods.eligen.condition": ["EntityRegions"],
    "methods.infinite_you.keypoints": ["draw_face_keypoints"],
    "methods.fill.condition": ["FillMask"],
    "methods.flex.condition": ["FlexControl"],
    "methods.infinite_you.condition": ["InfiniteYouIdentity"],
    "methods.inpaint.condition": ["InpaintRegion"],
    "methods.ip_adapter.condition": ["IPAdapterImages"],
    "methods.lora_encoder.condition": ["LoRAEmbedding"],
    "methods.nexus_gen.condition": ["NexusGenEmbedding"],
    "methods.redux.condition": ["ReduxImages"],
    "methods.references.condition": ["ReferenceImages"],
    "methods.step1x_edit.condition": ["Step1XInstruction"],
    "denoise": ["DenoisingStep", "PlanCache", "PromptEmbeds", "extend_prompt", "predict_velocity"],
    "guidance": ["combine_velocities"],
    "offload.disk.stream": ["DiskStreamingStats"],
    "offload.disk.api": [
        "disk_streaming_stats",
        "load_streamed",
        "release_disk_buffers",
        "stop_disk_streaming",
        "stream_from_disk",
    ],
    "methods.lora_fusion.hook": ["disable_lora_fusion", "enable_lora_fusion"],
    "caches.tea_cache": ["TeaCacheConfig", "apply_tea_cache", "remove_tea_cache"],
    "lora.loading.timestep": ["bake_timestep_lora", "load_timestep_lora"],
    "offload.budget.api": [
        "VRAMBudgetError",
        "VRAMPlan",
        "apply_vram_plan",
        "disable_vram_budget",
        "memory_report",
        "plan_vram",
    ],
    "diffsynth.vram": ["vram_plan_from_diffsynth"],
    "attention.image_prompts": ["ImagePrompt"],
    "canvas": ["Canvas"],
    "lora.tools.algebra": ["LoRAResult", "merge_loras", "resize_lora"],
    "lora.tools.convert": ["convert_lora", "convert_lora_file"],
    "lora.errors": ["LoRAError"],
    "lora.tools.extract": ["extract_lora"],
    "lora.tools.fuse": ["fuse_lora_into"],
    "lora.loading.load": ["load_lora", "unload_lora"],
    "lora.loading.mixin": ["FluxExtLoraLoaderMixin"],
    "lora.tools.report": ["LoRAReport", "detect_lora_format", "inspect_lora"],
    "methods.redux.checkpoint": ["load_redux_embedder"],
    "attention.processor": ["FluxRegionalAttnProcessor", "regional_attention"],
    "methods.attribute_control.encoder": ["AttributeValueEncoder"],
    "models.autoencoder_kl_flux": ["AutoencoderKLFlux"],
    "methods.control.model": ["FluxExtControlNetModel"],
    "methods.infinite_you.faces": ["FaceEmbedding", "FaceEncoder"],
    "methods.infinite_you.projector": ["InfiniteYouImageProjector"],
    "methods.infinite_you.insightface": ["InsightFaceEncoder"],
    "methods.ip_adapter.model": ["FluxIPAdapter"],
    "methods.lora_encoder.model": ["FluxLoRAEncoder"],
    "methods.lora_fusion.gates": ["FluxLoRAFusion"],
    "methods.nexus_gen.adapter": ["NexusGenAdapter"],
    "methods.nexus_gen.decoder": ["load_nexus_gen_decoder"],
    "methods.nexus_gen.merger": ["NexusGenEditingMerger"],
    "methods.nexus_gen.language_model": ["NexusGenModel"],
    "methods.step1x_edit.connector": ["Step1XConnector"],
    "models.transformer_flux_ext": ["FluxExtTransformer2DModel"],
    "methods.attribute_control.pipeline": ["FluxAttributeControlPipeline"],
    "pipeline.conditioned": ["FluxConditionedPipeline"],
    "methods.eligen.pipeline": ["FluxEliGenPipeline"],
    "methods.flex.pipeline": ["FluxFlexPipeline"],
    "methods.infinite_you.pipeline": ["FluxInfiniteYouPipeline", "infinite_you_preset"],
    "methods.insert_anything.pipeline": ["FluxInsertAnythingPipeline"],
    "methods.lora_encoder.pipeline": ["FluxLoRAEncoderPipeline"],
    "methods.nexus_gen.pipeline": ["FluxNexusGenPipeline"],
    "methods.step1x_edit.pipeline": ["FluxStep1XEditPipeline"],
    "inputs.qwen_vl": ["QwenVLProcessor"],
    "schedulers.scheduling_flux_flow_match": ["FluxFlowMatchScheduler"],
    "sequence": ["AttentionRule", "Contribution", "TokenGroup"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
# diffusers looks the loading base classes of a component library up in its namespace.
_DIFFUSERS_NAMES = ("ModelMixin", "SchedulerMixin")
_SUBMODULES = ("flux_shapes",)

__all__ = [
    "AttentionPlan",
    "AttentionRule",
    "AttributeValueEncoder",
    "AttributeValues",
    "AutoencoderKLFlux",
    "Canvas",
    "Contribution",
    "ControlNetImage",
    "DenoisingStep",
    "DiskStreamingStats",
    "EncodedConditions",
    "EntityRegions",
    "FaceEmbedding",
    "FaceEncoder",
    "FillMask",
    "FlexControl",
    "FluxAttributeControlPipeline",
    "FluxCondition",
    "FluxConditionedPipeline",
    "FluxEliGenPipeline",
    "FluxExtControlNetModel",
    "FluxExtLoraLoaderMixin",
    "FluxExtTransformer2DModel",
    "FluxFlexPipeline",
    "FluxFlowMatchScheduler",
    "FluxIPAdapter",
    "FluxInfiniteYouPipeline",
    "FluxInsertAnythingPipeline",
    "FluxLoRAEncoder",
    "FluxLoRAEncoderPipeline",
    "FluxLoRAFusion",
    "FluxNexusGenPipeline",
    "FluxRegionalAttnProcessor",
    "FluxStep1XEditPipeline",
    "IPAdapterImages",
    "ImagePrompt",
    "InfiniteYouIdentity",
    "InfiniteYouImageProjector",
    "InpaintRegion",
    "InsightFaceEncoder",
    "LoRAEmbedding",
    "LoRAError",
    "LoRAReport",
    "LoRAResult",
    "NexusGenAdapter",
    "NexusGenEditingMerger",
    "NexusGenEmbedding",
    "NexusGenModel",
    "PlanCache",
    "PromptEmbeds",
    "QwenVLProcessor",
    "ReduxImages",
    "ReferenceImages",
    "Step1XConnector",
    "Step1XInstruction",
    "TeaCacheConfig",
    "TokenGroup",
    "VRAMBudgetError",
    "VRAMPlan",
    "apply_tea_cache",
    "apply_vram_plan",
    "bake_timestep_lora",
    "build_attention_plan",
    "combine_velocities",
    "convert_lora",
    "convert_lora_file",
    "custom_pipeline",
    "detect_lora_format",
    "disable_lora_fusion",
    "disable_vram_budget",
    "disk_streaming_stats",
    "draw_face_keypoints",
    "enable_lora_fusion",
    "extend_prompt",
    "extract_lora",
    "fuse_lora_into",
    "infinite_you_preset",
    "inspect_lora",
    "load_lora",
    "load_nexus_gen_decoder",
    "load_redux_embedder",
    "load_streamed",
    "load_timestep_lora",
    "memory_report",
    "merge_loras",
    "plan_vram",
    "predict_velocity",
    "regional_attention",
    "release_disk_buffers",
    "remove_tea_cache",
    "resize_lora",
    "stop_disk_streaming",
    "stream_from_disk",
    "tiny_flux_path",
    "unload_lora",
    "vram_plan_from_diffsynth",
]


def custom_pipeline(name: str) -> str:
    """Path of the file to give as `custom_pipeline=` to `DiffusionPipeline.from_pretrained`.

    Args:
        name (`str`):
            The pipeline's short name, for example `"eligen"`; `"conditioned"` is the composable pipeline.

    Returns:
        `str`: an absolute path; pass it together with `trust_remote_code=True`.

    Raises:
        ValueError: if there is no such pipeline; the message lists the names.
    """
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_shims")
    path = os.path.join(folder, f"dfx_{name}.py")
    if not os.path.isfile(path):
        known = sorted(file[4:-3] for file in os.listdir(folder) if file.startswith("dfx_") and file.endswith(".py"))
        raise ValueError(f"There is no pipeline named {name!r}. Choose one of {known}.")
    return path


def tiny_flux_path() -> str:
    """Path of the embedded tiny FLUX.1 ("shapes"), an ordinary pipeline folder for `from_pretrained`."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "tiny_flux")


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    elif name in _DIFFUSERS_NAMES:
        value = getattr(importlib.import_module("diffusers"), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f".{name}", __name__)
    elif name == "__version__":
        value = importlib.import_module("importlib.metadata").version("diffusers-flux-ext")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register(sys.modules[__name__], [name for name in _MODULE_OF if name.endswith("Pipeline")])
