"""Naming the format of a LoRA file. A diagnosis for people: no conversion depends on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..keys import LoRAKey


class _Facts:
    """What the keys of one component and namespace have in common."""

    def __init__(self, keys: Sequence[LoRAKey], metadata: Mapping[str, str]) -> None:
        own = [key for key in keys if key.component == "transformer"] or list(keys)
        spaces = Counter(key.layer.namespace for key in own)
        # Layers that are not fused have Black Forest Labs' plain names in files that number the parts of the others.
        self.namespace = "bfl_split" if "bfl_split" in spaces else spaces.most_common(1)[0][0]
        own = [key for key in own if key.layer.namespace == self.namespace]
        self.prefix = Counter(key.prefix for key in own).most_common(1)[0][0]
        self.parts = {key.part for key in own}
        self.suffixes = {key.suffix for key in own}
        self.forms = {key.layer.form for key in own}
        self.named = any(key.adapter_name for key in own)
        self.trailing = any(key.body.endswith("_") for key in own)
        self.text_prefixes = {key.prefix for key in keys if key.component != "transformer"}
        self.text_suffixes = {key.suffix for key in keys if key.component != "transformer"}
        self.flat_clip = any(
            key.component == "text_encoder" and not key.body.startswith("text_model")
            for key in keys
            if not key.is_flat
        )
        self.peft = "lora_adapter_metadata" in metadata
        self.onetrainer = any(name.startswith("ot_") for name in metadata)

    @property
    def kind(self) -> str:
        for mark, kind in (("lokr", "lokr"), ("hada", "loha")):
            if any(part.startswith(mark) for part in self.parts):
                return kind
        if "down" not in self.parts and {"diff", "diff_b"} & self.parts:
            return "full"
        return "dora" if "magnitude" in self.parts else "lora"

    def spelled(self, text: str) -> bool:
        return any(text in suffix for suffix in self.suffixes)


def _bfl_flat(facts: _Facts) -> str:
    if "lora_te2_" in facts.text_prefixes or facts.onetrainer:
        return "onetrainer_kohya"
    if facts.kind != "lora":
        return f"kohya_{facts.kind}"
    return "kohya" if "alpha" in facts.parts else "kohya_noalpha"


def _bfl_dotted(facts: _Facts) -> str:
    if "set" in facts.parts:
        return "bfl_control"
    if facts.kind == "lokr":
        return "aitoolkit_lokr_bfl"
    if facts.named:
        return "bfl_default"
    by_prefix = {"base_model.model.": "fal_kontext", "model.diffusion_model.": "bfl_model_prefix"}
    if facts.prefix in by_prefix:
        return by_prefix[facts.prefix]
    if facts.spelled("lora_down") or facts.spelled("lora_up"):
        return "comfy_extract" if {"diff_b", "diff"} & facts.parts else "bfl_down_up"
    if facts.prefix == "":
        return "onetrainer_original" if "alpha" in facts.parts else "bfl_noprefix"
    if "alpha" not in facts.parts:
        return "aitoolkit_bfl"
    comfy = facts.onetrainer or any(prefix.startswith("text_encoders.") for prefix in facts.text_prefixes)
    return "onetrainer_comfy" if comfy else "bfl_alpha"


def _diffusers_flat(facts: _Facts) -> str:
    if facts.prefix == "lycoris_":
        return f"simpletuner_lycoris_{facts.kind}"
    if facts.prefix == "lora_transformer_":
        return "onetrainer_legacy" if facts.kind == "lora" else f"onetrainer_{facts.kind}"
    return "kohya_flat_diffusers_trail" if facts.trailing else "kohya_flat_diffusers"


def _diffusers_dotted(facts: _Facts) -> str:
    if "diagonal" in facts.parts:
        return "peft_adalora"
    if facts.prefix.startswith("base_model."):
        return "peft_basemodel_default" if facts.named else "peft_basemodel"
    if facts.prefix == "diffusion_model.":
        return "simpletuner_comfy"
    if facts.kind in ("lokr", "loha", "full"):
        return f"aitoolkit_{facts.kind}"
    if facts.spelled(".magnitude"):
        return "aitoolkit_dora"
    alpha = "_alpha" if "alpha" in facts.parts else ""
    if facts.spelled(".lora.") or facts.spelled("_lora."):
        return f"diffusers_old{alpha}"
    if facts.spelled("lora_down") or facts.spelled("lora_up"):
        return "diffusers_down_up"
    level = "noprefix" if facts.prefix == "" else "peft"
    if facts.named:
        return f"diffusers_{level}_default"
    if facts.peft:
        return f"diffusers_{level}_meta"
    return _diffusers_peft(facts, level, alpha)


def _diffusers_peft(facts: _Facts, level: str, alpha: str) -> str:
    if "bias" in facts.parts:
        return "diffusers_peft_bias"
    if facts.kind == "dora":
        return "diffusers_peft_dora"
    if level == "noprefix":
        return f"diffusers_peft_noprefix{alpha}"
    if any("lora_linear_layer" in suffix for suffix in facts.text_suffixes):
        return "diffusers_te_old"
    if facts.flat_clip:
        return "diffusers_te_flat"
    return f"diffusers_peft{alpha}"


def _diffsynth(facts: _Facts) -> str:
    if "single_blocks.{}.linear" in facts.forms:
        return "diffsynth_sept2024"
    if any(form.endswith(("to_q", "to_k", "to_v", "besides_attn")) for form in facts.forms):
        return "diffsynth_split"
    if facts.prefix.startswith("pipe."):
        return "diffsynth_pipe"
    return "diffsynth_native" if facts.named else "diffsynth_nodefault"


def _name(facts: _Facts) -> str:
    if any(part.startswith("lora_time_") for part in facts.parts):
        return "diffsynth_timestep"
    flat = facts.prefix.endswith("_")
    if facts.namespace in ("diffusers", "clip", "t5"):
        return _diffusers_flat(facts) if flat else _diffusers_dotted(facts)
    if facts.namespace == "bfl":
        return _bfl_flat(facts) if flat else _bfl_dotted(facts)
    if facts.namespace == "xlabs":
        return "xlabs_prefixed" if facts.prefix else "xlabs"
    return "onetrainer_bfl_split" if facts.namespace == "bfl_split" else _diffsynth(facts)


def describe_format(keys: Sequence[LoRAKey], metadata: Mapping[str, str]) -> str:
    """
    Names the format of a file.

    Args:
        keys (`Sequence[LoRAKey]`):
            Its keys, taken apart.
        metadata (`Mapping[str, str]`):
            Its header.

    Returns:
        `str`: A name such as `"kohya"`; several joined by `" + "` if the file mixes layouts; `"unknown"` without keys.
    """
    if not keys:
        return "unknown"
    transformer = [key for key in keys if key.component == "transformer"]
    groups: dict[tuple[str, bool], list[LoRAKey]] = {}
    for key in transformer or keys:
        groups.setdefault((_family(key), key.is_flat), []).append(key)
    # `x_embedder` and `context_embedder` are spelled alike in diffusers and DiffSynth.
    if len(groups) > 1:
        groups.pop(("shared", False), None)
    text = [key for key in keys if key.component != "transformer"]
    return " + ".join(_name(_Facts([*group, *text], metadata)) for group in groups.values())


def _family(key: LoRAKey) -> str:
    if key.layer.form in ("x_embedder", "context_embedder"):
        return "diffusers" if key.is_flat else "shared"
    return "bfl" if key.layer.namespace == "bfl_split" else key.layer.namespace
