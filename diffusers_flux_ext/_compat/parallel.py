"""diffusers' context parallelism, and the marks that other libraries leave on a transformer which they split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.models._modeling_parallel import ParallelConfig
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry


# Where a transformer keeps what it knows about other processes: diffusers, cache-dit, and this package.
RANKS = "_flux_ext_ranks"
SHARING_MARKS = ("_parallel_config", "_parallelism_config", RANKS)


def split_degree(transformer: torch.nn.Module) -> int:
    """Return the number of devices that each sequence is split over; 1 without context parallelism."""
    config = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    if config is not None:
        return (config.ulysses_degree or 1) * (config.ring_degree or 1)
    if not getattr(transformer, "_is_parallelized", False):
        return 1
    # The mark of cache-dit, which keeps its sizes, and of ParaAttention, which does not.
    foreign = getattr(transformer, "_parallelism_config", None)
    sizes = [getattr(foreign, name, None) or 1 for name in ("ulysses_size", "ring_size")]
    return 2 if foreign is None else sizes[0] * sizes[1]


@dataclass(frozen=True)
class SplitSettings:
    """Settings of diffusers' context parallelism on a transformer.

    Args:
        ulysses (`int`): Devices that exchange heads for tokens.
        ring (`int`): Devices that pass keys and values around.
        evenly (`bool`): Whether the numbers of tokens must be divisible by the number of devices.
        group (`torch.distributed.ProcessGroup`): The processes that share the tokens.
        backend (`str`): The attention backend.
        backend_runs_ring (`bool`): Whether that backend returns the sums that ring attention needs.
    """

    ulysses: int
    ring: int
    evenly: bool
    group: Any
    backend: str
    backend_runs_ring: bool


def split_settings(transformer: torch.nn.Module) -> SplitSettings | None:
    """Return the settings of diffusers' context parallelism on a transformer, or `None` without it."""
    config = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    if config is None:
        return None
    # The first one speaks for all; listing all of them walks through the whole model, at each step.
    processor = next((module.processor for module in transformer.modules() if hasattr(module, "processor")), None)
    chosen: Any = getattr(processor, "_attention_backend", None)
    backend = _AttentionBackendRegistry.get_active_backend()[0] if chosen is None else AttentionBackendName(chosen)
    return SplitSettings(
        config.ulysses_degree or 1,
        config.ring_degree or 1,
        not any(getattr(config, name, False) for name in ("ulysses_anything", "ring_anything")),
        config._flattened_mesh.get_group(),
        backend.value,
        backend is not AttentionBackendName.NATIVE,
    )


def split_over(transformer: Any, config: ContextParallelConfig, device_type: str) -> None:
    """Enable diffusers' context parallelism; on CPUs, too, where its own entry divides by the number of accelerators.

    Args:
        transformer (`FluxTransformer2DModel`): The transformer.
        config (`ContextParallelConfig`): The settings, with a mesh.
        device_type (`str`): Type of the devices.
    """
    if device_type != "cpu":
        transformer.enable_parallelism(config=config)
        return
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=config.mesh)
    _set_parallel_config(transformer, parallel)
    apply_context_parallel(transformer, config, transformer._cp_plan)


def split_no_more(transformer: Any) -> None:
    """Undo [`split_over`], for which diffusers has no call of its own."""
    remove_context_parallel(transformer, transformer._cp_plan)
    _set_parallel_config(transformer, None)


def _set_parallel_config(transformer: Any, config: Any) -> None:
    transformer._parallel_config = config
    for processor in transformer.attn_processors.values():
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = config
