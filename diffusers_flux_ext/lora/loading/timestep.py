"""Timestep LoRA: LoRAs whose rank is modulated by the timestep."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..._compat import offloading_suspended
from ..errors import LoRAError, naming_files
from ..files import LoRASource
from ..reading.hub import check_hub_arguments
from ..reading.read import LoRAFile, read
from ..updates import TIMED_PARTS, LoRA, Timed, Update
from .clock import connect_clock
from .load import add_adapter


PUBLISHED_STRENGTH = 2.0


def load_timestep_lora(
    pipe: Any,
    source: LoRASource,
    adapter_name: str | None = None,
    strength: float = PUBLISHED_STRENGTH,
    *,
    strict: bool = True,
    **hub: Any,
) -> str:
    r"""Load a LoRA that depends on the timestep, beside those that are active.

    See [MultiAlign](https://modelscope.cn/models/DiffSynth-Studio/MultiAlign-FLUX.1-dev). A layer adds `strength * up
    @ (gamma(t) * (down @ x) + beta(t))`, where `gamma` and `beta` are affine in the sinusoids of the timestep. It is
    an adapter like others: `set_adapters` changes its strength, `disable_lora`, `unload_lora` and diffusers' own
    functions switch it off and remove it, bit for bit. Every sample of a batch may have its own timestep. It cannot be
    fused into the weights.

    Args:
        pipe (`DiffusionPipeline`):
            A FLUX.1 pipeline, diffusers' own included.
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            `adapter_model.safetensors`, a folder with it, a repository of the Hub, or the tensors.
        adapter_name (`str`, *optional*):
            The adapter's name; `default_0`, `default_1`, ... without.
        strength (`float`, *optional*, defaults to 2.0):
            Factor of the update; 2.0 is the published value. A PEFT config beside the file is not read.
        strict (`bool`, *optional*, defaults to `True`):
            Whether unknown keys are an error.
        hub:
            `weight_name`, `subfolder`, `revision`, ... as for [`load_lora`].

    Returns:
        `str`: The adapter's name.

    Raises:
        LoRAError: If the file cannot be read, is not a timestep LoRA, fits no layer of the transformer, the name is
            taken, or the strength is not a finite number.
        TypeError: If there are unknown arguments.
    """
    adapter = _read(source, strict, **hub)
    # The layers cannot run without the clock, and a VRAM budget runs them once to plan again.
    with naming_files(source), offloading_suspended(pipe):
        name = add_adapter(pipe, adapter, adapter_name, strength, timed=True)
        connect_clock(pipe.transformer, name)
    return name


def bake_timestep_lora(
    source: LoRASource, timestep: float, strength: float = PUBLISHED_STRENGTH, *, strict: bool = True, **hub: Any
) -> dict[str, Tensor]:
    """Return the ordinary LoRA that a timestep LoRA is at one timestep.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            As for [`load_timestep_lora`].
        timestep (`float`):
            In [0, 1000], as in `scheduler.timesteps`.
        strength (`float`, *optional*, defaults to 2.0):
            Factor of the update.
        strict, hub:
            As for [`load_timestep_lora`].

    Returns:
        `dict[str, torch.Tensor]`: Factors and biases in float32 and diffusers' layout, for [`load_lora`].

    Raises:
        LoRAError: If the file cannot be read or is not a timestep LoRA.
        ValueError: If the timestep is out of range, or the strength is not finite.
    """
    if not 0 <= timestep <= 1000 or not math.isfinite(strength):
        raise ValueError(
            f"`timestep` is {timestep} and `strength` {strength}; expected one in [0, 1000] and a finite number."
        )
    suffixes = {"down": "lora_A.weight", "up": "lora_B.weight", "bias": "lora_B.bias"}
    return {
        f"{name}.{suffixes[part]}": tensor
        for name, update in _read(source, strict, **hub).updates()
        if isinstance(update, Timed)
        for part, tensor in update.at(timestep, strength).parts.items()
    }


def _read(source: LoRASource, strict: bool, **hub: Any) -> LoRAFile:
    check_hub_arguments(hub)
    with naming_files(source):
        adapter = read(source, {}, {}, strict=strict, hub=hub)
        _check_timed(adapter.updates())
        others = sorted({name.partition(".")[0] for name, _ in adapter.updates()} - {"transformer"})
        if others:
            raise LoRAError(f"A timestep LoRA updates the transformer only; this one has layers of {others}.")
    # The strength replaces alpha.
    layers = {name: replace(layer, update=replace(layer.update, scale=1.0)) for name, layer in adapter.layers.items()}
    return replace(adapter, layers=layers)


def _check_timed(updates: Iterable[tuple[str, Update]]) -> None:
    """Raise a [`LoRAError`] unless every layer is a complete one of a timestep LoRA."""
    for name, update in updates:
        timed = {part: tuple(tensor.shape) for part, tensor in update.parts.items() if part.startswith("lora_time_")}
        if not timed:
            raise LoRAError(f"`{name}` does not depend on the timestep: this is not a timestep LoRA. Use `load_lora`.")
        rank = update.rank
        sizes = {shape[1:] for part, shape in timed.items() if part.endswith(".weight")}
        ranks = {shape[:1] for shape in timed.values()}
        axes = all(len(shape) == 1 + part.endswith(".weight") for part, shape in timed.items())
        complete = sorted(timed) == TIMED_PARTS and isinstance(update.inner, LoRA)
        if not (complete and axes and ranks == {(rank,)} and len(sizes) == 1):
            raise LoRAError(
                f"`{name}` is not a layer of a timestep LoRA: besides a LoRA of rank {rank} it has {timed}; expected "
                f"{TIMED_PARTS}, the weights of shape (rank, size) and the biases of shape (rank,)."
            )
        if len(other := [part for part in update.parts if part not in (*timed, "down", "up")]):
            raise LoRAError(f"`{name}` has {other}, which timestep LoRAs do not have.")
