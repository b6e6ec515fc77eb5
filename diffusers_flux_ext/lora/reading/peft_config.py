"""PEFT's configs: which of its tuners and options are static updates of weights, and where each keeps its alpha."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LoRAError, UnsupportedLoRAError


# The supported tuners, and the name of alpha in each.
_ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha", "ADALORA": "lora_alpha"}
# Initialisations that take the first update out of the base weights, so that the file alone does not say what changes.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_OPTIONS = {
    "alora_invocation_tokens": "aLoRA, which acts on the tokens after an invocation only",
    "use_qalora": "QA-LoRA, whose factors act on groups of inputs",
    "use_bdlora": "BD-LoRA, whose factors are the blocks of a matrix",
    "arrow_config": "Arrow, which chooses between several adapters for every token",
    "kasa_config": "KaSA, which also truncates the base weights",
    "layer_replication": "a LoRA for a model with repeated layers",
}
# What PEFT adds to the rank that it divides by.
_ADALORA_EPSILON = 1e-5
_LARGEST_RANK = 2**20


def normalized_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Translate the config of any supported tuner to that of a `LoraConfig`.

    Args:
        config (`Mapping[str, Any]`): PEFT's config of one model.
        source (`str`): Where it comes from, for errors.

    Returns:
        `dict[str, Any]`: The config, with alpha under the name `lora_alpha`, and numbers as ranks.

    Raises:
        LoRAError: If a number that the scale needs is missing.
        UnsupportedLoRAError: If it is the config of another tuner, or of a LoRA that is more than an update.
    """
    tuner = tuner_of(config)
    if tuner not in _ALPHAS:
        raise UnsupportedLoRAError(
            f"PEFT's config, {source}, is that of the tuner {tuner[:50]}, which is not a static update of weights "
            f"that can be read. Expected one of {sorted(_ALPHAS)}."
        )
    _refuse_options(config, source)
    found = dict(config)
    if _ALPHAS[tuner] in config:
        found["lora_alpha"] = config[_ALPHAS[tuner]]
    return _normalized_adalora(found, source) if tuner == "ADALORA" else found


def tuner_of(config: Mapping[str, Any]) -> str:
    """Return the name of the tuner that a config belongs to; diffusers leaves it out for a LoRA."""
    return str(config.get("peft_type") or "LORA").rpartition(".")[2].upper()


def _refuse_options(config: Mapping[str, Any], source: str) -> None:
    found = next((text for option, text in _OPTIONS.items() if config.get(option)), None)
    if found is not None:
        raise UnsupportedLoRAError(f"PEFT's config, {source}, is that of {found}. Only static updates can be read.")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise UnsupportedLoRAError(
            f"PEFT's config, {source}, has `init_lora_weights={start[:50]!r}`: its training started by taking an "
            "update out of the base weights, which the file does not hold. Save it as a LoRA for the unchanged "
            "weights, with `save_pretrained(folder, path_initial_model_for_weight_conversion=...)`."
        )


def _normalized_adalora(config: dict[str, Any], source: str) -> dict[str, Any]:
    """Translate AdaLoRA's config, which divides by the initial rank and notes the kept ranks of every layer."""
    start, kept = config.get("init_r"), config.get("rank_pattern") or {}
    if not isinstance(start, int) or isinstance(start, bool) or not 0 < start <= _LARGEST_RANK:
        raise LoRAError(f"`init_r` of the AdaLoRA config, {source}, is {str(start)[:50]}; expected a positive rank.")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise LoRAError(f"The AdaLoRA config, {source}, has no number as `lora_alpha`, which its scale depends on.")
    if not isinstance(kept, Mapping) or not all(isinstance(k, str) and isinstance(v, list) for k, v in kept.items()):
        raise LoRAError(f"`rank_pattern` of the AdaLoRA config, {source}, should map layers to lists of booleans.")
    ranks = {f"^{name.rpartition('.lora_E')[0] or name}": sum(map(bool, mask)) for name, mask in kept.items()}
    return {**config, "r": start, "rank_pattern": ranks, "alpha_pattern": {}}


def divisor(config: Mapping[str, Any], rank: int) -> float:
    """Return what alpha is divided by, given a normalized config and the rank of a layer."""
    if tuner_of(config) == "ADALORA":
        return float(config["r"] + _ADALORA_EPSILON)
    return float(rank**0.5 if config.get("use_rslora") else rank)
