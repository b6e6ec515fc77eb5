"""Saving loaded LoRAs as diffusers does, T5's included."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import LoRAError
from ..reading.peft_config import normalized_config
from ..reading.scale import PeftScales
from .patterns import in_any_order


def stable_metadata(component: str, metadata: Mapping[str, Any] | None, keys: Iterable[str]) -> dict[str, Any] | None:
    """
    PEFT's config as it is written beside the tensors of a model, where sorting would not change what it says.

    Args:
        component (`str`): The model.
        metadata (`Mapping[str, Any]`, *optional*): Its `LoraConfig` as a dict.
        keys (`Iterable[str]`): The keys of its tensors, without the model's name.

    Returns:
        `dict[str, Any]`, or `None` without metadata.

    Raises:
        LoRAError: If the metadata is not a dict.
    """
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise LoRAError(
            f"`{component}_lora_adapter_metadata` is a {type(metadata).__name__}; expected the dict that "
            "`LoraConfig.to_dict()` gives."
        )
    source = f"`{component}_lora_adapter_metadata`"
    scales = PeftScales({component: normalized_config(metadata, source)}, source)
    modules = dict.fromkeys(key.partition(".lora_")[0] for key in keys if ".lora_" in key)
    return in_any_order(scales, component, modules)
