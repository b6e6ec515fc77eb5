"""The inputs that the LoRA-Encoder reads from a LoRA."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ...checkpoints.layouts import list_keys
from ...lora.errors import LoRAError, naming_files
from ...lora.files import LoRASource
from ...lora.tools.convert import convert_lora


if TYPE_CHECKING:
    from .model import FluxLoRAEncoder

logger = logging.getLogger(__name__)
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def read_lora_layers(encoder: FluxLoRAEncoder, lora: LoRASource, strict: bool = True) -> dict[str, torch.Tensor]:
    """Return the layers of a LoRA that an encoder reads, in DiffSynth-Studio's layout with the scale in `up`.

    Args:
        encoder (`FluxLoRAEncoder`): The encoder.
        lora (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`): The LoRA.
        strict (`bool`, defaults to `True`): Whether other layers are errors; otherwise they are left out.

    Returns:
        `dict[str, torch.Tensor]`: `"<layer>.lora_A.weight"` and `"<layer>.lora_B.weight"`.

    Raises:
        LoRAError: if it cannot be read, has other layers and `strict`, or none of the encoder's sizes.
    """
    with naming_files(lora):
        weights, _ = convert_lora(lora, to="diffsynth", strict=strict)
        return _readable(encoder, weights, strict)


def _readable(encoder: FluxLoRAEncoder, weights: dict[str, torch.Tensor], strict: bool) -> dict[str, torch.Tensor]:
    layers = encoder.layer_shapes
    beyond = sorted(key for key in weights if key.removesuffix(DOWN).removesuffix(UP) not in layers)
    if beyond and strict:
        raise LoRAError(
            f"The LoRA-Encoder was not trained to read these parts of the LoRA: {list_keys(beyond)}. Pass "
            f"`strict=False` to leave them out."
        )
    if beyond:
        logger.warning(
            "%d parts of a LoRA are left out, the LoRA-Encoder cannot read them: %s.", len(beyond), list_keys(beyond)
        )
    kept = {key: weight for key, weight in weights.items() if key not in beyond}
    try:
        encoder.check_lora(lora_pairs(kept))
    except ValueError as error:
        raise LoRAError(str(error)) from error
    return kept


def lora_pairs(weights: Mapping[str, torch.Tensor], prefix: str = "") -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return `(down, up)` by layer, of the tensors whose keys begin with `prefix`."""
    names = [key[: -len(DOWN)] for key in weights if key.startswith(prefix) and key.endswith(DOWN)]
    return {name.removeprefix(prefix): (weights[name + DOWN], weights[name + UP]) for name in names}
