"""FLUX.1 methods that diffusers lacks, as ordinary diffusers pipelines that compose.

Public names are imported on first use, so `import diffusers_flux_ext` costs neither torch nor diffusers. The names of
a method are in its record; type checkers read them all from the stub beside this file.
"""

import importlib
import os
import sys
from typing import Any

from ._registration import BASES, LOADABLE, register
from .methods import METHODS


# Public names by module, except for those of methods.
_CORE = {
    "attention.image_prompts": ["ImagePrompt"],
    "attention.plan": ["AttentionPlan", "build_attention_plan"],
    "attention.processor": ["FluxRegionalAttnProcessor", "regional_attention"],
    "caches.tea_cache": ["TeaCacheConfig", "apply_tea_cache", "remove_tea_cache"],
    "canvas": ["Canvas"],
    "condition": ["FluxCondition"],
    "demand": ["Demand"],
    "denoise": ["DenoisingStep", "PlanCache", "PromptEmbeds", "extend_prompt", "predict_velocity"],
    "encoded": ["EncodedConditions"],
    "diffsynth.vram": ["vram_plan_from_diffsynth"],
    "guidance": ["combine_velocities"],
    "inputs.qwen_vl": ["QwenVLProcessor"],
    "lora.errors": ["LoRAError"],
    "lora.loading.load": ["load_lora", "unload_lora"],
    "lora.loading.mixin": ["FluxExtLoraLoaderMixin"],
    "lora.loading.timestep": ["bake_timestep_lora", "load_timestep_lora"],
    "lora.tools.algebra": ["LoRAResult", "merge_loras", "resize_lora"],
    "lora.tools.convert": ["convert_lora", "convert_lora_file"],
    "lora.tools.extract": ["extract_lora"],
    "lora.tools.fuse": ["fuse_lora_into"],
    "lora.tools.report": ["LoRAReport", "detect_lora_format", "inspect_lora"],
    "methods": ["Addition", "Method", "Release", "Trainable", "register_method"],
    "models.autoencoder_kl_flux": ["AutoencoderKLFlux"],
    "models.transformer_flux_ext": ["FluxExtTransformer2DModel"],
    "offload.budget.apply": ["apply_vram_plan", "disable_vram_budget", "memory_report"],
    "offload.budget.plan": ["VRAMBudgetError", "VRAMPlan"],
    "offload.budget.planner": ["plan_vram"],
    "offload.disk.streaming": [
        "disk_streaming_stats",
        "load_streamed",
        "release_disk_buffers",
        "stop_disk_streaming",
        "stream_from_disk",
    ],
    "offload.disk.loader": ["DiskStreamingStats"],
    "pipeline.attached.attach": ["attach_conditions", "attached_conditions", "detach_conditions"],
    "pipeline.attached.modular": ["condition_blocks"],
    "pipeline.conditioned": ["FluxConditionedPipeline"],
    "schedulers.scheduling_flux_flow_match": ["FluxFlowMatchScheduler"],
    "sequence": ["AttentionRule", "Contribution", "TokenGroup"],
}
_MODULE_OF = {name: module for module, names in _CORE.items() for name in names} | {
    name: f"methods.{method.folder}.{file}"
    for method in METHODS.values()
    for file, names in method.exports.items()
    for name in names
}
_SUBMODULES = ("flux_shapes",)


def custom_pipeline(name: str) -> str:
    """Return path of the file to give as `custom_pipeline=` to `DiffusionPipeline.from_pretrained`.

    Args:
        name (`str`):
            The pipeline's short name, for example `"eligen"`; `"conditioned"` is the composable pipeline.

    Returns:
        `str`: an absolute path; pass it together with `trust_remote_code=True`.

    Raises:
        ValueError: if there is no such pipeline; the message lists the names.
    """
    root = os.path.dirname(os.path.abspath(__file__))
    paths = {"conditioned": os.path.join(root, "pipeline", "dfx_conditioned.py")}
    paths |= {folder: path for folder, method in METHODS.items() if (path := method.shim())}
    if name not in paths:
        raise ValueError(f"There is no pipeline named {name!r}. Choose one of {sorted(paths)}.")
    return paths[name]


def tiny_flux_path() -> str:
    """Return path of the embedded tiny FLUX.1 ("shapes"), an ordinary pipeline folder for `from_pretrained`."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "tiny_flux")


__all__ = sorted([*_MODULE_OF, "custom_pipeline", "tiny_flux_path"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    elif name in BASES:
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


register(
    sys.modules[__name__],
    [name for name in _MODULE_OF if name.endswith("Pipeline")],
    [*LOADABLE, *(name for method in METHODS.values() for name in method.loadable)],
)
