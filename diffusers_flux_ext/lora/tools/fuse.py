"""Adding LoRAs to the weights of a checkpoint, in the checkpoint's own layout."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.layouts import TransformerLayout, list_keys, spell_in_layout
from ..errors import LoRAError, UnsupportedLoRAError, naming_files
from ..files import LoRASource, check_writable, is_finite, save_lora
from ..reading.read import LoRAFile, read
from ..reading.scope import find_token_scope
from ..updates import Update
from ..updates.exact import swap_halves
from .transformer import OpenedTransformer, TransformerSource, open_transformer


logger = logging.getLogger(__name__)


class _FusedTensor:
    """A weight that is computed when it is written."""

    def __init__(self, key: str, shape: tuple[int, ...], dtype: torch.dtype, fusion: _Fusion) -> None:
        self.key, self.shape, self.dtype, self.fusion = key, torch.Size(shape), dtype, fusion

    def build(self) -> Tensor:
        return self.fusion.weight(self.key)


class _Fusion:
    """A checkpoint and the updates of its diffusers layers."""

    def __init__(self, checkpoint: TransformerSource, updates: Mapping[str, Sequence[tuple[Update, float]]]):
        self.opened = open_transformer(checkpoint)
        self.diffusers: OpenedTransformer = open_transformer(checkpoint, "diffusers")
        self.updates = updates
        self.members = _members(self.opened.layout, self.diffusers.shapes)

    def weight(self, key: str) -> Tensor:
        """Return a weight of the checkpoint's layout with all updates in it, rounded once."""
        stored = self.opened.read(key)
        parts = self.members[key]
        if not any(part.rpartition(".")[0] in self.updates for part in parts):
            return stored
        fused = torch.cat([self._tuned(part) for part in parts])
        if self._swapped(parts):
            fused = swap_halves(fused)
        fused = fused.to(stored.dtype)
        if not is_finite(fused):
            raise LoRAError(f"With the update `{key}` has values that are not finite in {stored.dtype}.")
        return fused

    def _swapped(self, parts: Sequence[str]) -> bool:
        return self.opened.layout != "diffusers" and parts[0].startswith("norm_out.linear.")

    def _tuned(self, key: str) -> Tensor:
        module, _, which = key.rpartition(".")
        weight = self.diffusers.read(key).float()
        for update, strength in self.updates.get(module, ()):
            if which == "bias":
                weight = _tuned_bias(weight, update, strength)
            else:
                weight = update.applied(weight, strength, module)
        return weight


def _members(layout: TransformerLayout, diffusers: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the diffusers weights that each weight of the layout stacks, in order."""
    table: dict[str, list[str]] = {}
    for key in diffusers:
        table.setdefault(spell_in_layout(key, layout), []).append(key)
    order = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "proj_mlp")
    for parts in table.values():
        if len(parts) > 1:
            parts.sort(key=lambda part: order.index(part.split(".")[-2]))
    return table


def _tuned_bias(bias: Tensor, update: Update, strength: float) -> Tensor:
    delta = update.bias_delta()
    if "b_norm" in update.parts:
        delta = update.parts["b_norm"].float()
    return bias if delta is None else bias + strength * delta


def fuse_lora_into(
    checkpoint: TransformerSource,
    loras: LoRASource | Sequence[LoRASource],
    output: str | os.PathLike[str] | None = None,
    weights: Sequence[float] | float | None = None,
    strict: bool = True,
    overwrite: bool = False,
) -> dict[str, Tensor] | None:
    """Add LoRAs to a transformer's weights. The sum is computed in float32 and rounded once to the checkpoint's dtype.

    DoRA is exact here on either axis, because its base weights are available.

    Args:
        checkpoint (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A transformer in diffusers', Black Forest Labs' or DiffSynth's layout: a file, a folder or a state dict. It
            is not changed, and the result has its layout.
        loras (one source, or a sequence):
            LoRAs in any layout.
        output (`str` or `os.PathLike`, *optional*):
            The safetensors file to write, one weight at a time.
        weights (`float` or `Sequence[float]`, *optional*):
            A weight for each LoRA; 1 by default.
        strict (`bool`, *optional*, defaults to `True`):
            Whether keys that are not understood and parts of text encoders are errors; else they are left out.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether an existing file may be replaced.

    Returns:
        `dict[str, torch.Tensor]`, or `None` if a file was written.

    Raises:
        UnsupportedLoRAError: If a LoRA updates a text encoder and `strict`.
        LoRAError: If a LoRA cannot be read or does not fit, or if the file cannot be written.
    """
    several = isinstance(loras, Sequence) and not isinstance(loras, str)
    sources: list[Any] = list(loras) if several else [loras]  # type: ignore[arg-type]
    given = [weights] if isinstance(weights, int | float) else weights
    strengths = [1.0] * len(sources) if given is None else [float(weight) for weight in given]
    if len(strengths) != len(sources) or not all(map(math.isfinite, strengths)):
        raise LoRAError(f"{len(sources)} LoRAs and the weights {strengths}; expected one finite number for each.")
    if output is not None:
        check_writable(output, overwrite)
    updates = _collect(sources, strengths, strict)
    with naming_files(checkpoint, *sources):
        fusion = _Fusion(checkpoint, updates)
        _check_present(fusion)
        entries = {key: _FusedTensor(key, shape, fusion.opened.read(key).dtype, fusion)
                   for key, shape in fusion.opened.shapes.items()}  # fmt: skip
        if output is None:
            return {key: entry.build().clone() for key, entry in entries.items()}
        save_lora(output, entries, fusion.opened.metadata, overwrite)
    return None


def _collect(
    sources: Sequence[Any], strengths: Sequence[float], strict: bool
) -> dict[str, list[tuple[Update, float]]]:
    updates: dict[str, list[tuple[Update, float]]] = {}
    for source, strength in zip(sources, strengths):
        with naming_files(source):
            adapter = read(source, strict=strict)
            _add_updates(updates, adapter, strength, strict)
    return updates


def _add_updates(
    updates: dict[str, list[tuple[Update, float]]], adapter: LoRAFile, strength: float, strict: bool
) -> None:
    text = sorted(name for name in adapter.modules if not name.startswith("transformer."))
    if text and strict:
        raise UnsupportedLoRAError(
            f"The LoRA updates text encoders, which the checkpoint does not hold: {list_keys(text)}. Pass "
            "`strict=False` to leave these parts out."
        )
    if scope := find_token_scope(adapter.layers.values()):
        logger.warning("%s", scope)
    for name, update in adapter.updates():
        if name.startswith("transformer."):
            update.check_static(name)
            updates.setdefault(name.removeprefix("transformer."), []).append((update, strength))


def _check_present(fusion: _Fusion) -> None:
    known = {key.rpartition(".")[0] for key in fusion.diffusers.shapes}
    missing = fusion.updates.keys() - known
    if missing:
        raise LoRAError(f"The checkpoint has no layers {list_keys(missing)}.")
