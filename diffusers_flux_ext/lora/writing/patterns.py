"""PEFT's configs with patterns whose order does not matter, since JSON is sorted and the first match wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import LoRAError
from ..reading.peft_config import normalized_config
from ..reading.scale import PeftScales


_DEFAULTS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}


def in_any_order(scales: PeftScales, component: str, modules: Iterable[str]) -> dict[str, Any]:
    """Return a config that gives every layer the same rank and alpha in any order of its patterns.

    Args:
        scales (`PeftScales`): The configs.
        component (`str`): The model whose config it is.
        modules (`Iterable[str]`): Its layers, as PEFT sees them.

    Returns:
        `dict[str, Any]`: The config, with a pattern for each layer alone where several fit one and the order decides.
    """
    config, names = dict(scales.configs[component]), list(modules)
    for table in _DEFAULTS:
        patterns = config.get(table) or {}
        values = {name: scales.value(component, table, name) for name in names}
        if any(_values(config, table, order, names) != values for order in (sorted(patterns), list(patterns)[::-1])):
            default = config.get(_DEFAULTS[table])
            config[table] = {_exact(component, name): value for name, value in values.items() if value != default}
    return config


def _values(config: Mapping[str, Any], table: str, order: Iterable[str], names: Iterable[str]) -> dict[str, Any]:
    """Return the values that the patterns give to layers in another order."""
    scales = PeftScales({"": {**config, table: {pattern: config[table][pattern] for pattern in order}}}, "")
    return {name: scales.value("", table, name) for name in names}


def _exact(component: str, name: str) -> str:
    # transformers 5 dropped CLIP's level `text_model.`, with which files are written and read by either version.
    return rf"^(text_model\.)?{name.removeprefix('text_model.')}" if component == "text_encoder" else f"^{name}"


def stable_metadata(component: str, metadata: Mapping[str, Any] | None, keys: Iterable[str]) -> dict[str, Any] | None:
    """Return PEFT's config for writing beside a model's tensors, unaffected by sorting.

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
