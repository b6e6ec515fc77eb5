"""Naming the format of a LoRA file. A diagnosis for people: no conversion depends on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from ..keys import LoRAKey


# Names of formats and the facts that identify them, by namespace and, with a trailing `_`, for flat keys. The first
# row whose facts all hold is the format; `{kind}` is the kind of updates. A prefix comes after `=`.
_DIFFUSERS: tuple[tuple[str, ...], ...] = (
    ("peft_adalora", "diagonal"),
    ("peft_basemodel_default", "base_model", "named"),
    ("peft_basemodel", "base_model"),
    ("simpletuner_comfy", "=diffusion_model."),
    ("aitoolkit_{kind}", "lokr"),
    ("aitoolkit_{kind}", "loha"),
    ("aitoolkit_{kind}", "full"),
    ("aitoolkit_dora", ".magnitude"),
    ("diffusers_old_alpha", "lora.", "alpha"),
    ("diffusers_old", "lora."),
    ("diffusers_down_up", "lora_down"),
    ("diffusers_noprefix_default", "=", "named"),
    ("diffusers_peft_default", "named"),
    ("diffusers_noprefix_meta", "=", "peft header"),
    ("diffusers_peft_meta", "peft header"),
    ("diffusers_peft_bias", "bias"),
    ("diffusers_peft_dora", "dora"),
    ("diffusers_peft_noprefix_alpha", "=", "alpha"),
    ("diffusers_peft_noprefix", "="),
    ("diffusers_te_old", "old text"),
    ("diffusers_te_flat", "flat clip"),
    ("diffusers_peft_alpha", "alpha"),
    ("diffusers_peft",),
)
_DIFFUSERS_FLAT: tuple[tuple[str, ...], ...] = (
    ("simpletuner_lycoris_{kind}", "=lycoris_"),
    ("onetrainer_legacy", "=lora_transformer_", "lora"),
    ("onetrainer_{kind}", "=lora_transformer_"),
    ("kohya_flat_diffusers_trail", "trailing"),
    ("kohya_flat_diffusers",),
)
_FORMATS: dict[str, tuple[tuple[str, ...], ...]] = {
    "diffusers": _DIFFUSERS, "clip": _DIFFUSERS, "t5": _DIFFUSERS,
    "diffusers_": _DIFFUSERS_FLAT, "clip_": _DIFFUSERS_FLAT, "t5_": _DIFFUSERS_FLAT,
    "bfl": (
        ("bfl_control", "set"),
        ("aitoolkit_lokr_bfl", "lokr"),
        ("bfl_default", "named"),
        ("fal_kontext", "=base_model.model."),
        ("bfl_model_prefix", "=model.diffusion_model."),
        ("comfy_extract", "lora_down", "diff"),
        ("comfy_extract", "lora_down", "diff_b"),
        ("bfl_down_up", "lora_down"),
        ("onetrainer_original", "=", "alpha"),
        ("bfl_noprefix", "="),
        ("onetrainer_comfy", "alpha", "onetrainer header"),
        ("onetrainer_comfy", "alpha", "text_encoders"),
        ("bfl_alpha", "alpha"),
        ("aitoolkit_bfl",),
    ),
    "bfl_": (
        ("onetrainer_kohya", "lora_te2_"),
        ("onetrainer_kohya", "onetrainer header"),
        ("kohya", "lora", "alpha"),
        ("kohya_noalpha", "lora"),
        ("kohya_{kind}",),
    ),
    "bfl_split": (("onetrainer_bfl_split",),),
    "xlabs": (("xlabs", "="), ("xlabs_prefixed",)),
    "diffsynth": (
        ("diffsynth_sept2024", "single_blocks.{}.linear"),
        ("diffsynth_split", "split"),
        ("diffsynth_pipe", "pipe"),
        ("diffsynth_native", "named"),
        ("diffsynth_nodefault",),
    ),
}  # fmt: skip


def _kind(parts: Collection[str]) -> str:
    for mark, kind in (("lokr", "lokr"), ("hada", "loha")):
        if any(part.startswith(mark) for part in parts):
            return kind
    if "down" not in parts and not {"diff", "diff_b"}.isdisjoint(parts):
        return "full"
    return "dora" if "magnitude" in parts else "lora"


def _facts(own: Sequence[LoRAKey], text: Sequence[LoRAKey], prefix: str, metadata: Mapping[str, str]) -> set[str]:
    """Collect facts from the keys of one component and namespace, and those of text encoders."""
    parts, suffixes, forms = {key.part for key in own}, {key.suffix for key in own}, {key.layer.form for key in own}
    text_prefixes = {key.prefix for key in text}
    told = {
        "base_model": prefix.startswith("base_model."),
        "pipe": prefix.startswith("pipe."),
        "named": any(key.adapter_name for key in own),
        "trailing": any(key.body.endswith("_") for key in own),
        ".magnitude": any(".magnitude" in suffix for suffix in suffixes),
        "lora.": any(".lora." in suffix or "_lora." in suffix for suffix in suffixes),
        "lora_down": any("lora_down" in suffix or "lora_up" in suffix for suffix in suffixes),
        "split": any(form.endswith(("to_q", "to_k", "to_v", "besides_attn")) for form in forms),
        "old text": any("lora_linear_layer" in key.suffix for key in text),
        "flat clip": any(
            key.component == "text_encoder" and not key.is_flat and not key.body.startswith("text_model")
            for key in (*own, *text)
        ),
        "lora_te2_": "lora_te2_" in text_prefixes,
        "text_encoders": any(name.startswith("text_encoders.") for name in text_prefixes),
        "peft header": "lora_adapter_metadata" in metadata,
        "onetrainer header": any(name.startswith("ot_") for name in metadata),
    }
    return {f"={prefix}", _kind(parts), *parts, *forms, *(name for name, holds in told.items() if holds)}


def _name(keys: Sequence[LoRAKey], metadata: Mapping[str, str]) -> str:
    own = [key for key in keys if key.component == "transformer"] or list(keys)
    spaces = Counter(key.layer.namespace for key in own)
    # Layers that are not fused have Black Forest Labs' plain names in files that number the parts of the others.
    namespace = "bfl_split" if "bfl_split" in spaces else spaces.most_common(1)[0][0]
    own = [key for key in own if key.layer.namespace == namespace]
    prefix = Counter(key.prefix for key in own).most_common(1)[0][0]
    if any(key.part.startswith("lora_time_") for key in own):
        return "diffsynth_timestep"
    facts = _facts(own, [key for key in keys if key.component != "transformer"], prefix, metadata)
    flat = f"{namespace}_" if prefix.endswith("_") else namespace
    rows = _FORMATS.get(flat) or _FORMATS[namespace]
    name = next(name for name, *needed in rows if facts.issuperset(needed))
    return name.format(kind=_kind({key.part for key in own}))


def describe_format(keys: Sequence[LoRAKey], metadata: Mapping[str, str]) -> str:
    """Name the format of a file.

    Args:
        keys (`Sequence[LoRAKey]`): Its keys, taken apart.
        metadata (`Mapping[str, str]`): Its header.

    Returns:
        `str`: A name such as `"kohya"`; several joined by `" + "` if the file mixes layouts; `"unknown"` without keys.
    """
    if not keys:
        return "unknown"
    transformer = [key for key in keys if key.component == "transformer"]
    groups: dict[tuple[str, bool], list[LoRAKey]] = {}
    for key in transformer or keys:
        groups.setdefault((_family(key), key.is_flat), []).append(key)
    # `x_embedder` and `context_embedder` have the same names in diffusers and DiffSynth.
    if len(groups) > 1:
        groups.pop(("shared", False), None)
    text = [key for key in keys if key.component != "transformer"]
    return " + ".join(_name([*group, *text], metadata) for group in groups.values())


def _family(key: LoRAKey) -> str:
    if key.layer.form in ("x_embedder", "context_embedder"):
        return "diffusers" if key.is_flat else "shared"
    return "bfl" if key.layer.namespace == "bfl_split" else key.layer.namespace
