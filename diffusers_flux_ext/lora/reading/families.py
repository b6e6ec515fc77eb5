"""LoRAs that are recognised in order to be refused: those of other models, and those that are not static updates."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence


# Marks of other model families among the keys, the most distinctive first.
_MODELS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        (
            "FLUX.2",
            r"to_qkv_mlp_proj|double_stream_modulation|single_stream_modulation|\.ff(_context)?\.linear_(in|out)\b",
        ),
        ("Chroma", r"distilled_guidance_layer"),
        ("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mlp[._]net|mod[._]1)"),
        ("Stable Diffusion 3", r"joint_blocks[._]\d|joint_transformer_blocks|transformer_blocks[._]\d+[._]attn2\."),
        (
            "Wan",
            r"blocks[._]\d+[._](self_attn|cross_attn)[._][qkvo](_img)?\b|blocks[._]\d+[._](self_attn|cross_attn)_",
        ),
        ("HunyuanVideo", r"(img|txt)_attn_(qkv|proj)\b|individual_token_refiner"),
        ("LTX-Video", r"^(?=.*patchify).*transformer_blocks[._]\d+[._]attn1[._]to_[qkv]|caption_projection"),
        ("Lumina or Z-Image", r"(noise|context)_refiner[._]\d|layers[._]\d+[._]attention[._](qkv|to_q)"),
        (
            "Stable Diffusion (XL)",
            r"(input|output|down|up|mid|middle)_blocks?[._](\d|attentions|1_)|lora_te2_text_model|text_encoder_2\.text_model",
        ),
    )
)
# Adapters for FLUX.1 that do more than add to weights.
_DYNAMIC: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (name, re.compile(pattern), reason)
    for name, pattern, reason in (
        ("OFT of sd-scripts", r"^oft_unet_", "it multiplies the base weights, so its update depends on them"),
        (
            "EasyControl",
            r"\.processor\.(cond_)?(q|k|v|proj)_loras\.\d+\.",
            "it acts on the tokens of a condition image only, not on the weights",
        ),
        (
            "DreamO",
            r"^dreamo_(t5|task|idx)_embedding\.",
            "its pipeline also adds learned embeddings to the tokens of the target and of the references",
        ),
        (
            "T-LoRA",
            r"\.(lambda_layer|[qp]_layer\.weight)$",
            "its ranks depend on the timestep, and its start, which is taken off again, is not in the file",
        ),
        ("IA3", r"\.(ia3_l(\.\w+)?|on_input)$", "it multiplies the base weights, so its update depends on them"),
        (
            "VeRA",
            r"\b(vera_lambda_[bd]|vera_[AB])\b",
            "its layers share random factors of PEFT's, and it holds the vectors that scale them",
        ),
        (
            "a LoRA packed for nunchaku",
            r"mlp_context_fc[12]|\.mlp_fc[12]\.|\.qkv_proj\.lora_|\.smooth",
            "its factors are rearranged for 4-bit kernels; use the file it was made from",
        ),
    )
)
# PEFT's other tuners put their name before those of their parameters.
_TUNERS = re.compile(
    r"(?:^|\.)(?P<tuner>adamss|beft|boft|bone|c3a|deft|delora|fourierft|frod|glora|gralora|hira|hra|lily|ln_tuning|miss|"
    r"osf|peanut|poly|psoft|pvera|randlora|road|shadow|shira|supertuning|tinylora|trainable_tokens|unilora|vblora|"
    r"waveft)_\w+(?:\.|$)"
)
_WEIGHTS = (".weight", ".bias", ".scale")
RELEASED_WIDTH, RELEASED_DOUBLE_BLOCKS = 3072, 19
_INDEX = re.compile(r"(?<![a-z_])transformer_blocks[._](\d{1,4})[._]")


def find_foreign(keys: Collection[str]) -> str | None:
    """Explain why a file cannot be used: it targets another model, or is not a static weight update.

    Args:
        keys (`Collection[str]`): Keys of the file.

    Returns:
        `str`: A sentence for an error, or `None` if nothing speaks against FLUX.1.
    """
    for name, pattern, reason in _DYNAMIC:
        if any(pattern.search(key) for key in keys):
            return f"This is {name}: {reason}. It cannot be loaded or converted as a LoRA."
    tuner = next((found.group("tuner") for key in keys if (found := _TUNERS.search(key))), None)
    if tuner:
        return f"PEFT's tuner {tuner.upper()} saved this: it is not a LoRA, and cannot be loaded or converted as one."
    counts = {name: sum(pattern.search(key) is not None for key in keys) for name, pattern in _MODELS}
    name = max(counts, key=lambda key: counts[key])
    if counts[name]:
        return (
            f"This is a LoRA for {name}, not for FLUX.1: {counts[name]} of {len(keys)} keys show it, such as "
            f"`{next(key for key in keys if dict(_MODELS)[name].search(key))}`."
        )
    return None


def find_checkpoint(keys: Collection[str]) -> str | None:
    """Recognise whole weights, given the keys of a file without LoRA keys."""
    if keys and all(key.endswith(_WEIGHTS) and "lora" not in key for key in keys):
        return f"This holds whole weights and no updates of them, such as `{next(iter(keys))}`: it is a checkpoint."
    return None


def find_qwen_image(keys: Collection[str], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Recognise attention-only LoRAs for Qwen-Image, whose layers have FLUX.1's names but are in 60 blocks."""
    indices = [int(found.group(1)) for key in keys if (found := _INDEX.search(key))]
    if not indices or max(indices) < RELEASED_DOUBLE_BLOCKS or any("single_" in key for key in keys):
        return None
    if not any(RELEASED_WIDTH in shape for shape in shapes.values()):
        return None
    return (
        f"This is a LoRA for Qwen-Image, not for FLUX.1: it is {RELEASED_WIDTH} wide, has {max(indices) + 1} double "
        f"blocks, where FLUX.1 has {RELEASED_DOUBLE_BLOCKS}, and no single blocks."
    )
