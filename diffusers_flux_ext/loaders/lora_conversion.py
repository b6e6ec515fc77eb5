"""Converting LoRA files: state dict -> {module: LoRA pair} -> state dict."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from .checkpoint_formats import SWAPPED_HALVES
from .lora_formats import DIFFSYNTH_LINEARS, DIFFSYNTH_MARKS


_PREFIX = re.compile(r"^(pipe\.)?(dit\.)?")
_SUFFIX = re.compile(r"\.(lora_A|lora_B|lora_down|lora_up)(\.default)?\.weight$|\.(alpha)$")
_INDEX = re.compile(r"(?<=blocks\.)\d+(?=\.)")
_PART = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}


@dataclass(frozen=True)
class LoRAPair:
    """The update `delta W = alpha / rank * up @ down` of one Linear.

    Args:
        down (`torch.Tensor` of shape `(rank, in_features)`): First factor.
        up (`torch.Tensor` of shape `(out_features, rank)`): Second factor.
        alpha (`float`, *optional*): `None` stands for the rank, that is a scale of 1.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None


def is_diffsynth_lora(state_dict: Mapping[str, object]) -> bool:
    """Whether a LoRA's keys are in DiffSynth's layout."""
    return any(mark in key for key in state_dict for mark in DIFFSYNTH_MARKS) or any(
        re.match(r"(pipe\.)?(dit\.)?single_blocks\.\d+\.(proj_out|norm\.linear)\.", key) for key in state_dict
    )


def convert_diffsynth_lora(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | float]:
    """Convert a LoRA from DiffSynth's layout to diffusers'.

    Fused layers are split by rows; each part gets a copy of the first factor, so nothing is lost. The given tensors
    are not changed.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            Keys such as `blocks.0.attn.a_to_qkv.lora_A.default.weight`, with or without `.default` or `pipe.dit.`.

    Returns:
        `dict`: keys such as `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`, and `.alpha` as a number
        where the source has one.

    Raises:
        ValueError: if a key is not understood (up to ten are listed), a pair is incomplete or does not fit its layer.
    """
    converted: dict[str, torch.Tensor | float] = {}
    for module, pair in _read_diffsynth(state_dict).items():
        for target, part in _split(module, pair).items():
            converted[f"transformer.{target}.lora_A.weight"] = part.down
            converted[f"transformer.{target}.lora_B.weight"] = part.up
            if part.alpha is not None:
                converted[f"transformer.{target}.alpha"] = part.alpha
    return converted


def _read_diffsynth(state_dict: Mapping[str, torch.Tensor]) -> dict[str, LoRAPair]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    unknown = []
    for key, tensor in state_dict.items():
        suffix = _SUFFIX.search(key)
        module = _PREFIX.sub("", key[: suffix.start()] if suffix else key)
        if suffix is None or _INDEX.sub("{}", module) not in DIFFSYNTH_LINEARS:
            unknown.append(key)
        else:
            parts.setdefault(module, {})[suffix.group(3) or _PART[suffix.group(1)]] = tensor
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(state_dict)} keys of this LoRA in DiffSynth's layout are not understood: "
            f"{unknown[:10]}. The file may belong to another model than FLUX.1."
        )
    return {module: _pair(module, found) for module, found in parts.items()}


def _pair(module: str, found: Mapping[str, torch.Tensor]) -> LoRAPair:
    missing = sorted({"down", "up"} - found.keys())
    if missing or found["down"].shape[0] != found["up"].shape[1]:
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        raise ValueError(
            f"The LoRA pair of {module!r} is incomplete or its ranks differ: {shapes}. Expected `lora_A` of shape "
            f"(rank, in_features) and `lora_B` of shape (out_features, rank)."
        )
    alpha = float(found["alpha"]) if "alpha" in found else None
    return LoRAPair(found["down"], found["up"], alpha)


def _split(module: str, pair: LoRAPair) -> dict[str, LoRAPair]:
    template = _INDEX.sub("{}", module)
    index = _INDEX.search(module)
    targets = [target.format(index.group()) if index else target for target in DIFFSYNTH_LINEARS[template]]
    rows, width = pair.up.shape[0], pair.down.shape[1]
    if len(targets) == 3:
        sizes = [rows // 3] * 3
    elif len(targets) == 4:
        sizes = [width] * 3 + [rows - 3 * width]
    else:
        sizes = [rows]
    if sum(sizes) != rows or min(sizes) < 1:
        raise ValueError(f"`lora_B` of {module!r} has {rows} rows, which cannot be split over {targets}.")
    if targets[0] in SWAPPED_HALVES:
        pair = replace(pair, up=torch.cat(pair.up.chunk(2)[::-1]))
    # Every part gets a first factor of its own: loaded without a copy, a shared one would be trained and saved as one.
    return {
        target: replace(pair, down=pair.down.clone(), up=up.contiguous())
        for target, up in zip(targets, pair.up.split(sizes))
    }
