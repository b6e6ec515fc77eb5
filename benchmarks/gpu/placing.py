"""The ways to run a pipeline that does not fit on the card."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu.kit import Missing
from diffusers_flux_ext import VRAMBudgetError, apply_vram_plan, disable_vram_budget, plan_vram


Undo = Callable[[], None]


def _to_host(pipe: Any) -> Undo:
    def undo() -> None:
        pipe.remove_all_hooks()
        pipe.to("cpu")

    return undo


def whole(pipe: Any, device: torch.device, settings: Mapping[str, Any]) -> Undo:
    """Put everything on the device."""
    pipe.to(device)
    return _to_host(pipe)


def budget(pipe: Any, device: torch.device, settings: Mapping[str, Any]) -> Undo:
    """Apply this package's plan for a budget."""
    apply_vram_plan(pipe, make_plan(pipe, settings), device)
    return lambda: disable_vram_budget(pipe)


def make_plan(pipe: Any, settings: Mapping[str, Any]) -> Any:
    """Plan a pipeline for the settings of a row; raise [`Missing`] if the budget is too small."""
    stored = torch.float8_e4m3fn if settings.get("blocks") == "fp8" else None
    side, text = settings["pixels"], settings["text"]
    try:
        return plan_vram(pipe, settings["gib"], side, side, storage_dtype=stored, max_sequence_length=text)
    except VRAMBudgetError as error:
        raise Missing(f"The planner refuses: {error}") from error


def model_offload(pipe: Any, device: torch.device, settings: Mapping[str, Any]) -> Undo:
    """Enable diffusers' model offload."""
    pipe.enable_model_cpu_offload(device=device)
    return _to_host(pipe)


def sequential_offload(pipe: Any, device: torch.device, settings: Mapping[str, Any]) -> Undo:
    """Enable diffusers' sequential offload."""
    pipe.enable_sequential_cpu_offload(device=device)
    return _to_host(pipe)


def group_offload(pipe: Any, device: torch.device, settings: Mapping[str, Any]) -> None:
    """Enable diffusers' group offload, which cannot be taken away again."""
    # Only a CUDA device has the streams for it.
    pipe.enable_group_offload(device, num_blocks_per_group=1, use_stream=device.type == "cuda")


def layerwise_offload(pipe: Any, device: torch.device, settings: Mapping[str, Any]) -> Undo:
    """Enable cache-dit's layerwise offload, with some layers that stay on the device."""
    try:
        cache_dit = importlib.import_module("cache_dit")
        offload, remove = cache_dit.layerwise_offload, cache_dit.remove_layerwise_offload
    except (ImportError, AttributeError) as error:
        raise Missing(f"cache-dit's layerwise offload cannot be had: {error}.") from error
    if device.type == "cpu":
        raise Missing("cache-dit's layerwise offload needs an accelerator.")
    stay = {"persistent_buckets": settings["layers that stay"], "persistent_bins": 4}
    moves = {"async_transfer": True, "transfer_buckets": 2}
    offload(pipe, onload_device=device, **moves, **stay)
    return lambda: remove(pipe)


WAYS: dict[str, Callable[[Any, torch.device, Mapping[str, Any]], Undo | None]] = {
    "no offload": whole,
    "budget": budget,
    "model offload": model_offload,
    "sequential offload": sequential_offload,
    "group offload": group_offload,
    "cache-dit, layerwise": layerwise_offload,
}


@contextmanager
def placed(way: str, pipe: Any, device: torch.device, settings: Mapping[str, Any]) -> Iterator[bool]:
    """Run a pipeline in one way, and bring it back to host memory afterwards; yields whether that is possible."""
    undo = WAYS[way](pipe, device, settings)
    yield undo is not None
    if undo is not None:
        undo()


def reference_steps(
    transformer: Any, limit: float, device: torch.device, pixels: int, text: int, steps: int
) -> Callable[[], Any]:
    """Return the reference's own transformer with its own memory management, as a function that runs steps.

    Args:
        transformer (`FluxTransformer2DModel`): Has the weights, on the CPU.
        limit (`float`): The reference's `vram_limit`, in GiB.
        device (`torch.device`): Where it computes.
        pixels (`int`): Side of the image.
        text (`int`): Text tokens.
        steps (`int`): Steps of the function.

    Returns:
        `Callable`
    """
    from benchmarks.support.reference.boot import import_reference
    from benchmarks.support.reference.dit import reference_dit, reference_velocity

    layers = import_reference("diffsynth.core.vram.layers")
    norm = import_reference("diffsynth.models.flux_dit").RMSNorm
    dtype = transformer.dtype
    stages = {"offload": "cpu", "onload": "cpu", "preparing": device, "computation": device}
    config = {f"{stage}_device": place for stage, place in stages.items()}
    config |= {f"{stage}_dtype": dtype for stage in stages}
    modules = {torch.nn.Linear: layers.AutoWrappedLinear, norm: layers.AutoWrappedModule}
    dit = layers.enable_vram_management(
        reference_dit(transformer, share=True), modules, config, vram_limit=limit if device.type == "cuda" else None
    )
    for module in dit.modules():
        if hasattr(module, "onload"):
            module.onload()

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    widths = transformer.config.joint_attention_dim, transformer.config.pooled_projection_dim
    inputs: dict[str, Any] = {
        "latents": normal(1, 16, pixels // 8, pixels // 8),
        "timestep": torch.full((1,), 500.0, dtype=dtype, device=device),
        "prompt_emb": normal(1, text, widths[0]),
        "pooled_prompt_emb": normal(1, widths[1]),
        "guidance": torch.full((1,), 3.5, dtype=dtype, device=device),
        "text_ids": torch.zeros(1, text, 3, dtype=dtype, device=device),
        "image_ids": None,
    }
    return lambda: [reference_velocity(dit, **inputs) for _ in range(steps)]
