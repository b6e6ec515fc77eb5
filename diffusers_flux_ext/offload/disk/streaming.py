"""Streaming a module's blocks from disk, for machines with less memory than the module takes."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import nn
from transformers import PreTrainedModel

from ...checkpoints.model_configs import building, read_model_config
from ...checkpoints.packed_weights import check_not_packed
from ..claims import budget_suspended, check_unclaimed
from .attach import attach, detach
from .plan import check_folder, make_plan
from .stream import DiskStream, DiskStreamingStats, stream_of
from .weights import StreamedBlock, choose_kept


__all__ = [
    "disk_streaming_stats",
    "load_streamed",
    "release_disk_buffers",
    "stop_disk_streaming",
    "stream_from_disk",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_GIB = 2**30


def stream_from_disk(
    module: nn.Module,
    source: str | os.PathLike[str] | None = None,
    *,
    onload_device: str | torch.device | None = None,
    ram_budget_gib: float | None = None,
    read_ahead: int = 1,
    storage_dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    blocks: Sequence[str] | None = None,
    offload_dir: str | os.PathLike[str] | None = None,
) -> None:
    r"""Stream a module's block weights from disk on demand instead of keeping them in memory.

    A block is a member of one of the module's outermost `nn.ModuleList`s: all blocks of `FluxTransformer2DModel`, of a
    ControlNet, of T5 or CLIP. Their weights are read in a background thread while the block before computes, into
    reused buffers, so memory stays the same over any number of calls. Weights outside the blocks, biases,
    norms, tied weights and adapters (LoRA, IP-Adapter) stay in memory.

    The module's outputs are bit-equal to those of the ordinary module, unless `storage_dtype` rounds weights. LoRAs
    can be loaded before or after; caches may be switched on before or after, and blocks that they skip are not read.
    `module.to(device)` moves resident weights, and the blocks compute on that device from then on; after `to(dtype)`
    they compute in that data type. `state_dict()` and `save_pretrained` show the streamed weights as they are stored.
    Anything that needs all weights in memory (`fuse_lora`, gradients, ...) raises an error.

    Args:
        module (`nn.Module`):
            The module; it may be on the meta device if `source` is given (see [`load_streamed`]).
        source (`str` or `os.PathLike`, *optional*):
            The safetensors file of the module, or the folder that `save_pretrained` wrote, possibly in several files.
            Its weights take the place of the module's own. Without it, the module's present weights are written to
            `offload_dir` and read from there.
        onload_device (`str` or `torch.device`, *optional*):
            Where the module computes; the module's device by default, or the CPU if that is meta.
        ram_budget_gib (`float`, *optional*):
            Host memory in GiB for the read buffers and, with what remains, for blocks that are kept in memory once
            they have been read. By default no block is kept.
        read_ahead (`int`, *optional*, defaults to 1):
            Number of blocks that are read ahead, 0 or more. Each takes a buffer of the size of the largest block.
        storage_dtype (`torch.dtype`, *optional*):
            Data type that the blocks' Linears are stored in, except for those of adaptive norms; unchanged by default.
            `torch.float8_e4m3fn` halves what is read. Sources of another type are converted to `offload_dir` once.
        compute_dtype (`torch.dtype`, *optional*):
            Data type that the weights compute in; by default the module's, or the file's if the module is on meta, and
            bfloat16 for a file of 8 bits.
        blocks (`Sequence[str]`, *optional*):
            Names of the blocks to stream (`"transformer_blocks.3"`) or of lists of them (`"transformer_blocks"`); the
            other blocks stay in memory.
        offload_dir (`str` or `os.PathLike`, *optional*):
            Folder for files that have to be written. They are named by their content, so that one folder may serve any
            number of modules; they stay until they are deleted.

    Raises:
        FileNotFoundError: If `source` is missing.
        TypeError: If `module` is not an `nn.Module`, for example a whole pipeline.
        ValueError: If the module is quantised, has no blocks or is offloaded in another way, if the file does not fit
            the module, if `offload_dir` is missing, or if `ram_budget_gib` is smaller than the buffers; the message
            says how much they take.

    Example:
    ```python
    >>> from diffusers import FluxPipeline, FluxTransformer2DModel
    >>> from diffusers_flux_ext import load_streamed

    >>> transformer = load_streamed(FluxTransformer2DModel, "FLUX.1-dev/transformer", ram_budget_gib=4)
    >>> pipe = FluxPipeline.from_pretrained("FLUX.1-dev", transformer=transformer, torch_dtype=torch.bfloat16)
    ```
    """
    _check_arguments(module, ram_budget_gib, read_ahead, storage_dtype)
    check_not_packed(
        module,
        "be streamed from disk",
        "Put it under a VRAM budget without `ram_budget_gib`, or stream its unquantised file, with "
        "`storage_dtype=torch.float8_e4m3fn` to read half as much.",
    )
    with budget_suspended(module):
        check_free(module)
        device = _device(module) if onload_device is None else torch.device(onload_device)
        plan = make_plan(module, source, blocks, storage_dtype, compute_dtype, offload_dir)
        staging = _plan_memory(plan.blocks, device, read_ahead, ram_budget_gib)
        attach(module, plan, device, read_ahead, staging, compute_dtype)


def load_streamed(model_class: type[ModuleT], folder: str | os.PathLike[str], **kwargs: Any) -> ModuleT:
    r"""Build a model whose blocks are streamed from its own folder, without ever holding all weights in memory.

    Args:
        model_class (`type`):
            A diffusers model (`FluxTransformer2DModel`) or a transformers model (`T5EncoderModel`).
        folder (`str` or `os.PathLike`):
            Local folder with its `config.json` and safetensors files.
        kwargs (`dict`, *optional*):
            Arguments of [`stream_from_disk`], such as `ram_budget_gib`.

    Returns:
        `nn.Module`: the model in eval mode.

    Raises:
        FileNotFoundError: If the folder is missing.
        ValueError: If its config does not match its files; see [`stream_from_disk`] for others.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder `{folder}`. Pass a local one, such as `snapshot_download` gives.")
    _check_sizes(model_class, folder)
    # Buffers that no file has, such as position ids, have to be real.
    with init_empty_weights(include_buffers=False):
        model = _build(model_class, folder)
    _tied(model)
    stream_from_disk(model, folder, **kwargs)
    return model.eval().requires_grad_(False)


def _check_sizes(model_class: Any, folder: str | os.PathLike[str]) -> None:
    """Check that the config matches the files, before memory is allocated for any weight."""
    config = os.path.join(folder, "config.json")
    read_model_config(config)
    with building(config), torch.device("meta"):
        model = _build(model_class, folder)
    check_folder(_tied(model), folder)


def _build(model_class: Any, folder: str | os.PathLike[str]) -> Any:
    if issubclass(model_class, ModelMixin):
        return model_class.from_config(model_class.load_config(folder))
    return model_class(model_class.config_class.from_pretrained(folder))


def _tied(model: Any) -> Any:
    """Tie weights, which moving to the meta device has separated."""
    if isinstance(model, PreTrainedModel):
        model.tie_weights()
    return model


def stop_disk_streaming(module: nn.Module) -> None:
    """Turn all streamed weights into ordinary parameters again, on the device that they compute on.

    The weights are bit-equal to the streamed ones; what a `storage_dtype` rounded stays rounded.

    Args:
        module (`nn.Module`): The module that was given to [`stream_from_disk`].

    Raises:
        ValueError: If the module is not streamed.
        RuntimeError: If a file was changed; streaming then stays on.
    """
    stream = _stream(module)
    with budget_suspended(module):
        detach(module, stream)


def release_disk_buffers(module: nn.Module) -> None:
    """Free the read buffers of a streamed module until its next call, for example after a text encoder has run.

    Args:
        module (`nn.Module`): The module that was given to [`stream_from_disk`].

    Raises:
        ValueError: If the module is not streamed.
    """
    _stream(module).release()


def disk_streaming_stats(module: nn.Module) -> DiskStreamingStats:
    """Return what streaming has done since it began: bytes, blocks, and the time spent waiting.

    Args:
        module (`nn.Module`): The module that was given to [`stream_from_disk`].

    Raises:
        ValueError: If the module is not streamed.
    """
    return _stream(module).stats


def _stream(module: nn.Module) -> DiskStream:
    stream = stream_of(module)
    if stream is None:
        raise ValueError(f"This {type(module).__name__} is not streamed from disk; call `stream_from_disk` first.")
    return stream


def _check_arguments(
    module: Any, ram_budget_gib: float | None, read_ahead: int, storage_dtype: torch.dtype | None
) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` is a {type(module).__name__}; expected an `nn.Module`, such as `pipe.transformer`.")
    if not isinstance(read_ahead, int) or read_ahead < 0:
        raise ValueError(f"`read_ahead` is {read_ahead}; expected 0 or more blocks.")
    if ram_budget_gib is not None and not 0 < ram_budget_gib < math.inf:
        raise ValueError(f"`ram_budget_gib` is {ram_budget_gib}; expected a positive number of GiB.")
    if storage_dtype is not None and not storage_dtype.is_floating_point:
        raise ValueError(f"`storage_dtype` is {storage_dtype}; expected a floating one, such as torch.float8_e4m3fn.")


def check_free(module: nn.Module) -> None:
    """Raise a `ValueError` if something else already moves the module's weights, or LoRAs are fused into them.

    Args:
        module (`nn.Module`): The module.
    """
    check_unclaimed(module, model_offload=True)
    for part in module.modules():
        if stream_of(part) is not None:
            raise ValueError(
                f"This {type(part).__name__} is streamed already. Call `stop_disk_streaming` on it first."
            )
        if isinstance(getattr(part, "merged_adapters", None), list) and part.merged_adapters:
            raise ValueError("The module has fused LoRAs. Call `unfuse_lora`, or unload them, before streaming it.")


def _device(module: nn.Module) -> torch.device:
    devices = {parameter.device for parameter in module.parameters()}
    real = sorted(devices - {torch.device("meta")}, key=str)
    return real[-1] if real else torch.device("cpu")


def _plan_memory(
    blocks: Sequence[StreamedBlock], device: torch.device, read_ahead: int, ram_budget_gib: float | None
) -> int:
    """Mark the blocks to keep and return the number of staging buffers; raise if the buffers alone are too large."""
    staging = 2 if read_ahead else 1
    if ram_budget_gib is None:
        return staging
    on_cpu = device.type == "cpu"
    largest = max(block.size for block in blocks)
    cast = max(block.cast_size for block in blocks) if on_cpu else 0
    buffers = largest * min(read_ahead + 1, len(blocks)) + cast
    room = int(ram_budget_gib * _GIB)
    if not on_cpu:
        # Blocks pass through pinned host memory, whose size is rounded up to a power of two.
        buffers = 1 << (largest - 1).bit_length()
        staging = min(staging, max(1, room // buffers))
        buffers *= staging
    if on_cpu and sum(block.size for block in blocks) + cast <= room:
        buffers = cast
    if room < buffers:
        raise ValueError(
            f"`ram_budget_gib={ram_budget_gib}` is less than the buffers take: {buffers / _GIB:.3f} GiB. Raise it"
            + (", or lower `read_ahead`." if read_ahead and on_cpu else ".")
        )
    choose_kept(blocks, room - buffers)
    return staging
