"""Whether diffusers' own loader would apply a LoRA file: its own code is run on it and the results are compared."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from ..._compat import get_peft_kwargs
from ...checkpoints.layouts import list_keys
from ..errors import LoRAError
from ..keys import parse_lora_key
from ..reading.read import LoRAFile
from ..reading.scale import PEFT_HEADER, PeftScales, read_peft_scales
from ..updates import LoRA, Update


# Products that differ by less agree; bfloat16 factors that were multiplied once differ by this much.
TOLERANCE = 5e-3
_WHOLE_BLOCK = re.compile(r"transformer\.(single_)?transformer_blocks\.\d+\.lora_")
_PEFT_SUFFIXES = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
# What diffusers does with one layer, and with several.
_STATES = {
    "right": ("is applied", "are applied"),
    "wrong": ("gets another update", "get another update"),
    "dropped": ("is left out", "are left out"),
    "partial": ("loses its bias or magnitudes", "lose their bias or magnitudes"),
}


@dataclass(frozen=True)
class DiffusersVerdict:
    """The result of diffusers' `load_lora_weights` on a file.

    Attributes:
        result (`str`): `"fully"`, `"partly"` (some layers are left out), `"wrongly"` (some are scaled or mapped
            wrong), `"not"` (nothing is applied) or `"fails"` (an error).
        reasons (`tuple[str, ...]`): Sentences that say what happens.
    """

    result: str
    reasons: tuple[str, ...] = ()


def diffusers_verdict(adapter: LoRAFile, tensors: Mapping[str, Any]) -> DiffusersVerdict:
    """Run the installed diffusers' conversion on a file and compare every layer with the file's meaning.

    Args:
        adapter (`LoRAFile`): The file, read.
        tensors (`Mapping[str, torch.Tensor]`): Its tensors.

    Returns:
        `DiffusersVerdict`: The result and the reasons.
    """
    alphas = {key: tensor for key, tensor in tensors.items() if key.endswith(".alpha")}
    if any(".lora_down.weight" in key for key in tensors) and any(
        a.numel() == 1 and float(a) < 0 for a in alphas.values()
    ):
        return DiffusersVerdict("fails", ("it never returns from a negative alpha",))
    try:
        with _silence():
            loaded, network_alphas, _ = FluxLoraLoaderMixin.lora_state_dict(
                dict(tensors), return_alphas=True, return_lora_metadata=True
            )
    # Any error is the result.
    except Exception as error:
        return DiffusersVerdict("fails", (f"it raises {_described(error)}",))
    problem = _refusal(loaded, network_alphas, adapter)
    if problem is not None:
        return DiffusersVerdict("fails", (problem,))
    return _compare(adapter, loaded, network_alphas or {})


def _described(error: Exception) -> str:
    if text := str(error).strip():
        return f"{type(error).__name__}: {text[:200]}"
    # An assertion has no words but its own.
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"{type(error).__name__} without a message, at `{line}`"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)


def _refusal(loaded: Mapping[str, Any], alphas: Any, adapter: LoRAFile) -> str | None:
    norms = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
    if not any("lora" in key or any(norm in key for norm in norms) for key in loaded):
        return "it finds no LoRA in the file"
    if alphas and adapter.peft is not None and PEFT_HEADER in adapter.metadata:
        return "it refuses alphas beside PEFT's config"
    if any(".lora_A." in key and not key.endswith(".lora_A.weight") for key in loaded):
        return "it does not know PEFT's adapter name in the keys and leaves the weights unset"
    blocks = [key for key in loaded if _WHOLE_BLOCK.match(key)]
    if blocks:
        return f"it takes whole blocks for layers and raises a KeyError: {list_keys(blocks)}"
    components = {key.split(".")[0] for key in loaded if ".lora_A.weight" in key}
    if adapter.peft is not None and PEFT_HEADER in adapter.metadata:
        missing = components & {"transformer", "text_encoder"} - set(adapter.peft.configs)
        if missing:
            return f"PEFT's config in the header does not speak of {sorted(missing)}"
    return None


def _compare(adapter: LoRAFile, loaded: Mapping[str, Any], alphas: Mapping[str, Any]) -> DiffusersVerdict:
    loaded = _in_peft_names(loaded)
    scales = _scales(adapter, loaded, alphas)
    found: dict[str, list[str]] = {state: [] for state in _STATES}
    for module, update in adapter.updates():
        name = module
        if module.startswith("text_encoder.") and f"{name}.lora_A.weight" not in loaded:
            name = _clip_spelling(name, loaded)
        found[_layer_state(name, update, loaded, scales.get(name, 1.0))].append(module)
    reasons = tuple(
        f"{'1 layer' if len(modules) == 1 else f'{len(modules)} layers'} {_STATES[state][len(modules) > 1]}: "
        f"{list_keys(modules)}"
        for state, modules in found.items()
        if modules and state != "right"
    )
    if not reasons:
        return DiffusersVerdict("fully")
    if found["wrong"]:
        return DiffusersVerdict("wrongly", reasons)
    return DiffusersVerdict("partly" if found["right"] or found["partial"] else "not", reasons)


def _in_peft_names(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that diffusers continues with, in PEFT's names; it leaves out those of T5."""
    renamed = {}
    for key, value in loaded.items():
        found = parse_lora_key(key)
        if found is not None and found.layer.namespace in ("diffusers", "clip") and found.part in _PEFT_SUFFIXES:
            key = found.targets[0] + _PEFT_SUFFIXES[found.part] if found.prefix == f"{found.component}." else key
        # A key with the name of a factor that is not one counts as left out.
        if value.ndim == 2 or not key.endswith(tuple(_PEFT_SUFFIXES.values())):
            renamed[key] = value
    return {key: value for key, value in renamed.items() if not key.startswith("text_encoder_2.")}


def _clip_spelling(name: str, loaded: Mapping[str, Any]) -> str:
    level = "text_encoder.text_model."
    other = name.replace(level, "text_encoder.") if name.startswith(level) else name.replace("text_encoder.", level, 1)
    for spelling in (name, other):
        if any(key.startswith(spelling + ".") for key in loaded):
            return spelling
    return name


def _scales(adapter: LoRAFile, loaded: Mapping[str, Any], alphas: Mapping[str, Any]) -> dict[str, float]:
    """Return the scale that PEFT would give each layer."""
    found: dict[str, float] = {}
    stored = read_peft_scales(adapter.metadata, None)
    for component in ("transformer", "text_encoder"):
        prefix = f"{component}."
        ranks = {
            key.removeprefix(prefix).removesuffix(".lora_B.weight"): tensor.shape[1]
            for key, tensor in loaded.items()
            if key.startswith(prefix) and key.endswith(".lora_B.weight")
        }
        if not ranks:
            continue
        scales = stored or _inferred(component, ranks, alphas)
        for name, rank in ranks.items():
            try:
                scale = scales.scale(component, name, rank)
            except LoRAError:
                scale = float("nan")
            found[prefix + name] = 1.0 if scale is None else scale
    return found


def _inferred(component: str, ranks: Mapping[str, int], alphas: Mapping[str, Any]) -> PeftScales:
    prefix = f"{component}."
    own = {
        key.removeprefix(prefix): float(value)
        for key, value in alphas.items()
        if key.startswith(prefix) and (not isinstance(value, Tensor) or value.numel() == 1)
    }
    anchor = "^" if component == "transformer" else ""
    config = get_peft_kwargs(
        {f"{anchor}{name}.lora_B.weight": rank for name, rank in ranks.items()}, own, {}, component == "transformer"
    )
    return PeftScales({component: {**config, "rank_pattern": {}, "r": None}}, "diffusers")


def _layer_state(name: str, update: Update, loaded: Mapping[str, Any], scale: float) -> str:
    if {"set", "set_weight"} & update.parts.keys():
        return "right" if f"{name}.weight" in loaded else "dropped"
    down, up = (loaded.get(f"{name}.lora_{side}.weight") for side in "AB")
    if down is None or up is None:
        return "right" if _is_mute(update) else "dropped"
    if not isinstance(update.inner, LoRA):
        return "wrong"
    if not _agree(update, down, up, scale):
        return "wrong"
    bias, given = update.bias_delta(), loaded.get(f"{name}.lora_B.bias")
    if "magnitude" in update.parts and not any(key.startswith(f"{name}.lora_magnitude_vector") for key in loaded):
        return "partial"
    return "partial" if bias is not None and given is None and bool(bias.any()) else "right"


def _is_mute(update: Update) -> bool:
    return update.scale == 0 and not {"diff", "diff_b"} & update.parts.keys()


def _agree(update: Update, down: Tensor, up: Tensor, scale: float) -> bool:
    """Compare the two products on one vector, which is enough to tell them apart."""
    if down.shape[1] != update.parts["down"].shape[1] or up.shape[0] != update.parts["up"].shape[0]:
        return False
    probe = torch.randn(down.shape[1], generator=torch.Generator().manual_seed(0))
    theirs = scale * (up.float() @ (down.float() @ probe))
    ours = update.scale * (update.parts["up"].float() @ (update.parts["down"].float() @ probe))
    return bool((theirs - ours).norm() <= TOLERANCE * ours.norm())
