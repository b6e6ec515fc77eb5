"""FLUX.1 methods that diffusers lacks, as ordinary diffusers pipelines that compose.

Public names are imported on first use, so `import diffusers_flux_ext` costs neither torch nor diffusers.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from ._registration import register


if TYPE_CHECKING:
    from .attention_plan import AttentionPlan, build_attention_plan
    from .conditions.attribute_values import AttributeValues
    from .conditions.base import FluxCondition
    from .conditions.controlnet_image import ControlNetImage
    from .conditions.entity_regions import EntityRegions
    from .conditions.face_keypoints import draw_face_keypoints
    from .conditions.fill_mask import FillMask
    from .conditions.flex_control import FlexControl
    from .conditions.infinite_you_identity import InfiniteYouIdentity
    from .conditions.inpaint_region import InpaintRegion
    from .conditions.ip_adapter_images import IPAdapterImages
    from .conditions.lora_embedding import LoRAEmbedding
    from .conditions.nexus_gen_embedding import NexusGenEmbedding
    from .conditions.redux_images import ReduxImages
    from .conditions.reference_images import ReferenceImages
    from .conditions.step1x_instruction import Step1XInstruction
    from .denoise import DenoisingStep, PlanCache, PromptEmbeds, predict_velocity
    from .guidance import combine_velocities
    from .hooks.disk_stream import DiskStreamingStats
    from .hooks.disk_streaming import (
        disk_streaming_stats,
        load_streamed,
        release_disk_buffers,
        stop_disk_streaming,
        stream_from_disk,
    )
    from .hooks.lora_fusion import disable_lora_fusion, enable_lora_fusion
    from .hooks.tea_cache import TeaCacheConfig, apply_tea_cache, remove_tea_cache
    from .hooks.timestep_lora import bake_timestep_lora, load_timestep_lora
    from .hooks.vram import (
        VRAMBudgetError,
        VRAMPlan,
        apply_vram_plan,
        disable_vram_budget,
        memory_report,
        plan_vram,
    )
    from .hooks.vram_diffsynth import vram_plan_from_diffsynth
    from .image_prompt import ImagePrompt
    from .latents import Canvas
    from .loaders.lora_algebra import LoRAResult, merge_loras, resize_lora
    from .loaders.lora_conversion import convert_lora, convert_lora_file
    from .loaders.lora_errors import LoRAError
    from .loaders.lora_extraction import extract_lora
    from .loaders.lora_fusing import fuse_lora_into
    from .loaders.lora_loading import load_lora, unload_lora
    from .loaders.lora_mixin import FluxExtLoraLoaderMixin
    from .loaders.lora_report import LoRAReport, detect_lora_format, inspect_lora
    from .loaders.redux_files import load_redux_embedder
    from .models.attention_processor_flux import FluxRegionalAttnProcessor, regional_attention
    from .models.attribute_value_encoder import AttributeValueEncoder
    from .models.autoencoder_kl_flux import AutoencoderKLFlux
    from .models.controlnet_flux_ext import FluxExtControlNetModel
    from .models.face_encoder import FaceEmbedding, FaceEncoder
    from .models.infinite_you_image_projector import InfiniteYouImageProjector
    from .models.insightface_encoder import InsightFaceEncoder
    from .models.ip_adapter_flux import FluxIPAdapter
    from .models.lora_encoder_flux import FluxLoRAEncoder
    from .models.lora_fusion_flux import FluxLoRAFusion
    from .models.nexus_gen_adapter import NexusGenAdapter
    from .models.nexus_gen_decoder import load_nexus_gen_decoder
    from .models.nexus_gen_editing_merger import NexusGenEditingMerger
    from .models.nexus_gen_model import NexusGenModel
    from .models.step1x_connector import Step1XConnector
    from .models.transformer_flux_ext import FluxExtTransformer2DModel
    from .pipelines.pipeline_flux_attribute_control import FluxAttributeControlPipeline
    from .pipelines.pipeline_flux_conditioned import FluxConditionedPipeline
    from .pipelines.pipeline_flux_eligen import FluxEliGenPipeline
    from .pipelines.pipeline_flux_flex import FluxFlexPipeline
    from .pipelines.pipeline_flux_infinite_you import FluxInfiniteYouPipeline, infinite_you_preset
    from .pipelines.pipeline_flux_insert_anything import FluxInsertAnythingPipeline
    from .pipelines.pipeline_flux_lora_encoder import FluxLoRAEncoderPipeline
    from .pipelines.pipeline_flux_nexus_gen import FluxNexusGenPipeline
    from .pipelines.pipeline_flux_step1x_edit import FluxStep1XEditPipeline
    from .qwen_vl import QwenVLProcessor
    from .schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler
    from .sequence import AttentionRule, Contribution, TokenGroup

_MODULES = {
    "attention_plan": ["AttentionPlan", "build_attention_plan"],
    "conditions.attribute_values": ["AttributeValues"],
    "conditions.base": ["FluxCondition"],
    "conditions.controlnet_image": ["ControlNetImage"],
    "conditions.entity_regions": ["EntityRegions"],
    "conditions.face_keypoints": ["draw_face_keypoints"],
    "conditions.fill_mask": ["FillMask"],
    "conditions.flex_control": ["FlexControl"],
    "conditions.infinite_you_identity": ["InfiniteYouIdentity"],
    "conditions.inpaint_region": ["InpaintRegion"],
    "conditions.ip_adapter_images": ["IPAdapterImages"],
    "conditions.lora_embedding": ["LoRAEmbedding"],
    "conditions.nexus_gen_embedding": ["NexusGenEmbedding"],
    "conditions.redux_images": ["ReduxImages"],
    "conditions.reference_images": ["ReferenceImages"],
    "conditions.step1x_instruction": ["Step1XInstruction"],
    "denoise": ["DenoisingStep", "PlanCache", "PromptEmbeds", "predict_velocity"],
    "guidance": ["combine_velocities"],
    "hooks.disk_stream": ["DiskStreamingStats"],
    "hooks.disk_streaming": [
        "disk_streaming_stats",
        "load_streamed",
        "release_disk_buffers",
        "stop_disk_streaming",
        "stream_from_disk",
    ],
    "hooks.lora_fusion": ["disable_lora_fusion", "enable_lora_fusion"],
    "hooks.tea_cache": ["TeaCacheConfig", "apply_tea_cache", "remove_tea_cache"],
    "hooks.timestep_lora": ["bake_timestep_lora", "load_timestep_lora"],
    "hooks.vram": [
        "VRAMBudgetError",
        "VRAMPlan",
        "apply_vram_plan",
        "disable_vram_budget",
        "memory_report",
        "plan_vram",
    ],
    "hooks.vram_diffsynth": ["vram_plan_from_diffsynth"],
    "image_prompt": ["ImagePrompt"],
    "latents": ["Canvas"],
    "loaders.lora_algebra": ["LoRAResult", "merge_loras", "resize_lora"],
    "loaders.lora_conversion": ["convert_lora", "convert_lora_file"],
    "loaders.lora_errors": ["LoRAError"],
    "loaders.lora_extraction": ["extract_lora"],
    "loaders.lora_fusing": ["fuse_lora_into"],
    "loaders.lora_loading": ["load_lora", "unload_lora"],
    "loaders.lora_mixin": ["FluxExtLoraLoaderMixin"],
    "loaders.lora_report": ["LoRAReport", "detect_lora_format", "inspect_lora"],
    "loaders.redux_files": ["load_redux_embedder"],
    "models.attention_processor_flux": ["FluxRegionalAttnProcessor", "regional_attention"],
    "models.attribute_value_encoder": ["AttributeValueEncoder"],
    "models.autoencoder_kl_flux": ["AutoencoderKLFlux"],
    "models.controlnet_flux_ext": ["FluxExtControlNetModel"],
    "models.face_encoder": ["FaceEmbedding", "FaceEncoder"],
    "models.infinite_you_image_projector": ["InfiniteYouImageProjector"],
    "models.insightface_encoder": ["InsightFaceEncoder"],
    "models.ip_adapter_flux": ["FluxIPAdapter"],
    "models.lora_encoder_flux": ["FluxLoRAEncoder"],
    "models.lora_fusion_flux": ["FluxLoRAFusion"],
    "models.nexus_gen_adapter": ["NexusGenAdapter"],
    "models.nexus_gen_decoder": ["load_nexus_gen_decoder"],
    "models.nexus_gen_editing_merger": ["NexusGenEditingMerger"],
    "models.nexus_gen_model": ["NexusGenModel"],
    "models.step1x_connector": ["Step1XConnector"],
    "models.transformer_flux_ext": ["FluxExtTransformer2DModel"],
    "pipelines.pipeline_flux_attribute_control": ["FluxAttributeControlPipeline"],
    "pipelines.pipeline_flux_conditioned": ["FluxConditionedPipeline"],
    "pipelines.pipeline_flux_eligen": ["FluxEliGenPipeline"],
    "pipelines.pipeline_flux_flex": ["FluxFlexPipeline"],
    "pipelines.pipeline_flux_infinite_you": ["FluxInfiniteYouPipeline", "infinite_you_preset"],
    "pipelines.pipeline_flux_insert_anything": ["FluxInsertAnythingPipeline"],
    "pipelines.pipeline_flux_lora_encoder": ["FluxLoRAEncoderPipeline"],
    "pipelines.pipeline_flux_nexus_gen": ["FluxNexusGenPipeline"],
    "pipelines.pipeline_flux_step1x_edit": ["FluxStep1XEditPipeline"],
    "qwen_vl": ["QwenVLProcessor"],
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
