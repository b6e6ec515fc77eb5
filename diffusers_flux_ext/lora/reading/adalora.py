"""AdaLoRA's `up @ diag(e) @ down` (https://arxiv.org/abs/2303.10512) as a LoRA's `up @ down`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import LoRAError
from ..updates.exact import lossless


DIAGONAL = "diagonal"


def is_pruned(parts: Mapping[str, Tensor]) -> bool:
    """Whether training has taken all ranks from a layer of an AdaLoRA, so that it changes nothing."""
    return DIAGONAL in parts and parts[DIAGONAL].numel() == 0


def multiply_diagonal(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """
    Multiplies AdaLoRA's singular values into the first factor.

    Args:
        name (`str`): The layer, for errors.
        parts (`Mapping[str, torch.Tensor]`): Its parts by canonical name.

    Returns:
        `dict[str, torch.Tensor]`: The parts of a LoRA, in a dtype that holds the products exactly where there is one.

    Raises:
        LoRAError: If there is not one singular value for every rank.
    """
    rest = {part: tensor for part, tensor in parts.items() if part != DIAGONAL}
    if DIAGONAL not in parts:
        return rest
    values, down = parts[DIAGONAL], parts.get("down")
    if down is None or down.ndim != 2 or tuple(values.shape) != (down.shape[0], 1):
        shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        raise LoRAError(f"`{name}` is a broken layer of an AdaLoRA: expected one `lora_E` a rank, got {shapes}.")
    wide = torch.float64 if torch.float64 in (down.dtype, values.dtype) else torch.float32
    return {**rest, "down": lossless(down.to(wide) * values.to(wide), down.dtype)}
