"""The needs of a pipeline's and its conditions' models in a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging
from torch import nn

from ...checkpoints.packed_weights import GGUF, PlannedLinear, check_not_packed, packing_of, packings
from ...demand import Demand
from ..blocks import FP8, castable_leaves, compute_dtype, leaf_bytes, rest_bytes, streamable_blocks, tensor_bytes
from ..disk.plan import block_bytes
from ..disk.stream import stream_of
from .estimate import PIXELS_PER_TOKEN, TILE_SIZES, Workload, activation_bytes, residual_bytes
from .placement import LOOP, Need


# Convolutions take scratch memory outside of tensors; on the CPU it was measured (benchmarks/README.md).
CONVOLUTION_SCRATCH = 0.3
# What a quantised layer holds while it runs, in copies of its weight in the type it computes in: torchao's int4 and
# fp8 two, counted on the CPU, and the others one or less.
UNPACKED_COPIES = 2

logger = logging.get_logger(__name__)


def workload_of(
    conditions: Sequence[Any], height: int, width: int, batch: int, prompt_tokens: int, added: Sequence[Demand] = (),
    devices: int = 1,
) -> Workload:  # fmt: skip
    """Return the workload of a call with conditions."""
    everything = [*(_demand(each, prompt_tokens) for each in conditions), *added]
    seen_tokens = max([prompt_tokens, *(each.prompt_tokens for each in everything)])
    appended_tokens = sum(each.appended_tokens for each in everything)
    return Workload(
        height=height,
        width=width,
        batch=batch,
        text_tokens=seen_tokens + appended_tokens + sum(each.text_tokens for each in everything),
        prompt_tokens=seen_tokens,
        appended_tokens=appended_tokens,
        encoded_tokens=prompt_tokens,
        reference_tokens=sum(each.reference_tokens for each in everything),
        canvases=sum(each.canvases for each in everything),
        held_bytes=batch * sum(each.held_bytes for each in everything),
        texts=max([1, *(each.texts for each in everything)]),
        masked=any(each.masked for each in everything),
        devices=devices,
    )


def _demand(condition: Any, prompt_tokens: int) -> Demand:
    demand = condition.demand(prompt_tokens)
    if demand is None:
        logger.warning(
            f"{type(condition).__name__} does not say what it costs, so one more prompt of {prompt_tokens} tokens is "
            f"counted for it. Define `demand(prompt_tokens)`, which returns a `Demand`."
        )
        return Demand(text_tokens=prompt_tokens, texts=1)
    return demand


def planned_modules(pipe: Any, conditions: Sequence[Any]) -> dict[str, nn.Module]:
    """Return the models of a pipeline and of conditions by name, each once, in the order they run.

    Args:
        pipe (`DiffusionPipeline` or `Mapping[str, torch.nn.Module]`): A pipeline, or its models by name.
        conditions (`Sequence[FluxCondition]`): Conditions whose fields hold modules.

    Returns:
        `dict[str, torch.nn.Module]`
    """
    found = dict(pipe if isinstance(pipe, Mapping) else pipe.components)
    for condition in conditions:
        for name, value in vars(condition).items():
            if isinstance(value, nn.Module):
                found[_free(found, f"{type(condition).__name__}.{name}")] = value
    modules: dict[str, nn.Module] = {}
    for name, value in found.items():
        # diffusers holds several ControlNets in one module, which never run at once.
        nets = getattr(value, "nets", None) if isinstance(value, nn.Module) else None
        parts = {f"{name}.{index}": net for index, net in enumerate(nets)} if nets is not None else {name: value}
        for key, part in parts.items():
            if isinstance(part, nn.Module) and not any(part is other for other in modules.values()):
                modules[key] = part
    order = {"text_encoder": 0, "text_encoder_2": 1, "other": 2, LOOP: 3, "vae": 4}
    return dict(sorted(modules.items(), key=lambda item: order.get(phase_of(*item), 2)))


def _free(taken: Mapping[str, Any], name: str) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def is_denoiser(module: nn.Module) -> bool:
    """Whether a module is the transformer, as opposed to a ControlNet or anything else."""
    return _has_joint_attention(module) and not hasattr(module, "controlnet_x_embedder")


def phase_of(name: str, module: nn.Module) -> str:
    """Return the phase of a model: the loop for what runs at every step, a phase of its own for all others."""
    return LOOP if _has_joint_attention(module) or getattr(module, "runs_every_step", False) else name


def _has_joint_attention(module: nn.Module) -> bool:
    """Whether a module is a transformer or a ControlNet."""
    return hasattr(module, "transformer_blocks") and hasattr(getattr(module, "config", None), "joint_attention_dim")


def storage_of(
    modules: Mapping[str, nn.Module], storage_dtype: torch.dtype | Mapping[str, torch.dtype] | None
) -> dict[str, torch.dtype]:
    """Return the data type that the blocks of each model are stored in.

    Args:
        modules (`Mapping[str, torch.nn.Module]`): The models.
        storage_dtype (`torch.dtype` or `Mapping[str, torch.dtype]`, *optional*):
            For transformers and ControlNets, or for the models of the given names.

    Returns:
        `dict[str, torch.dtype]`: without the models that stay as they are.

    Raises:
        TypeError: if it is something else.
        ValueError: if there is no such model, or the dtype does not have one byte.
    """
    if storage_dtype is None:
        return {}
    if isinstance(storage_dtype, torch.dtype):
        wanted = {name: module for name, module in modules.items() if _has_joint_attention(module)}
        storage_dtype = dict.fromkeys(wanted, storage_dtype)
    if not isinstance(storage_dtype, Mapping):
        raise TypeError(
            f"`storage_dtype` is {storage_dtype!r}; expected a `torch.dtype`, or a mapping of models to them."
        )
    for name, dtype in storage_dtype.items():
        if name not in modules:
            raise ValueError(f"`storage_dtype` names {name!r}, but the models are {list(modules)}.")
        if dtype not in FP8:
            raise ValueError(f"`storage_dtype` is {dtype} for {name!r}; expected one of {list(FP8)}.")
        check_not_packed(modules[name], f"be stored in {dtype} as well", f"Leave {name!r} out of `storage_dtype`.")
        stream = stream_of(modules[name])
        if stream is not None and dtype not in stream.stored_dtypes:
            raise ValueError(
                f"{name!r} is streamed from disk as it is stored, not in {dtype}. Give `storage_dtype` to "
                f"`load_streamed` or `stream_from_disk` in place of the budget."
            )
    return dict(storage_dtype)


def weights_of(module: nn.Module, storage: torch.dtype | None, from_disk: bool) -> tuple[int, dict[str, int]]:
    """Count the bytes of a model's blocks, and of the rest.

    Args:
        module (`torch.nn.Module`): The model.
        storage (`torch.dtype`, *optional*): Data type that its blocks will be stored in.
        from_disk (`bool`): Whether blocks are read from files: biases, norms and adapters belong to the rest then.

    Returns:
        `tuple[int, dict[str, int]]`: The rest, and the blocks by path.
    """
    stored = None if stream_of(module) is not None else storage
    whole = {path: tensor_bytes(block, stored) for path, block in streamable_blocks(module).items()}
    rest = rest_bytes(module)
    if not from_disk:
        return rest, whole
    blocks = block_bytes(module, storage)
    return rest + sum(whole.values()) - (0 if stream_of(module) is not None else sum(blocks.values())), blocks


def need_of(
    name: str,
    module: nn.Module,
    workload: Workload,
    storage: torch.dtype | None,
    tile: int | None = None,
    from_disk: bool = False,
) -> Need:
    """Return what a model needs."""
    activations, assumed = activation_bytes(module, workload, tile)
    if is_autoencoder(module):
        activations += int(activations * CONVOLUTION_SCRATCH)
    if hasattr(getattr(module, "config", None), "image_embed_dim"):
        # What the blocks of an IP-Adapter make is kept.
        activations += workload.held_bytes
    activations += _unpacked_bytes(module, storage, from_disk)
    rest, blocks = weights_of(module, storage, from_disk)
    return Need(
        name=name,
        kind=type(module).__name__,
        phase=phase_of(name, module),
        rest=rest,
        blocks=blocks,
        leaves=leaf_bytes(module, storage),
        activations=activations,
        held=residual_bytes(module, workload) + (workload.held_bytes if is_denoiser(module) else 0),
        assumed=assumed,
        storage_dtype=storage,
        from_disk=from_disk,
    )


def _unpacked_bytes(module: nn.Module, storage: torch.dtype | None, from_disk: bool) -> int:
    """Count the bytes that are cast at once to the computing dtype: a layer, or a block that is read from disk."""
    stream, size = stream_of(module), compute_dtype(module).itemsize
    if stream is not None:
        return max((block.cast_size for block in stream.blocks), default=0)
    if packings(module):
        return size * UNPACKED_COPIES * _largest_packed_layer(module)
    if storage is None and not any(each.dtype in FP8 for each in module.parameters()):
        return 0
    if from_disk:
        return size * max(
            (sum(each.numel() for each in block.parameters()) for block in streamable_blocks(module).values()),
            default=0,
        )
    leaves = (sum(each.numel() for each in leaf.parameters(recurse=False)) for leaf in castable_leaves(module))
    return size * max(leaves, default=0)


def _largest_packed_layer(module: nn.Module) -> int:
    """Numbers in the largest layer that is unpacked for its turn; that of GGUF is counted where it happens."""
    layers: list[Any] = [
        layer
        for layer in module.modules()
        if packing_of(layer) not in (None, GGUF) or isinstance(layer, PlannedLinear)
    ]
    return max((layer.in_features * layer.out_features for layer in layers), default=0)


def autoencoder_need(name: str, module: nn.Module, workload: Workload, available: int) -> tuple[Need, int | None]:
    """Return what an autoencoder needs with the largest tiles that fit, and the tiles' size."""
    need, tile = need_of(name, module, workload, None), None
    for tile in TILE_SIZES:
        if tile is not None and tile >= max(workload.height, workload.width) and workload.batch == 1:
            continue
        if workload.largest_tile is not None and (tile is None or tile > workload.largest_tile):
            continue
        need = need_of(name, module, workload, None, tile)
        if need.total + need.activations <= available:
            break
    return need, tile


def is_autoencoder(module: nn.Module) -> bool:
    """Whether a model decodes images."""
    return isinstance(module, AutoencoderKL)


def larger(workload: Workload, batch: int, image_tokens: int, text_tokens: int) -> Workload | None:
    """Return the workload of an actual call, if it exceeds the planned one.

    Args:
        workload (`Workload`): The planned workload.
        batch (`int`), image_tokens (`int`), text_tokens (`int`): The transformer's inputs.

    Returns:
        `Workload` or `None`: More image tokens count as a larger image. Where the image is smaller than planned, text
            tokens, such as those of entities, may take the place of what it lacks, three of four.
    """
    spare = workload.image_tokens - image_tokens
    # T5's states are wider than a token of the image, so a token of text costs a little more.
    longest = workload.text_tokens + max(0, spare) * 3 // 4
    if batch <= workload.batch and spare >= 0 and text_tokens <= longest:
        return None
    height, width = workload.height, workload.width
    if image_tokens > workload.image_tokens:
        tokens = -(-(image_tokens - workload.reference_tokens) // (1 + workload.canvases))
        rows = max(height // PIXELS_PER_TOKEN, int(tokens**0.5))
        height, width = rows * PIXELS_PER_TOKEN, -(-tokens // rows) * PIXELS_PER_TOKEN
    return replace(
        workload,
        batch=max(batch, workload.batch),
        height=height,
        width=max(width, workload.width),
        text_tokens=max(text_tokens, workload.text_tokens),
    )
