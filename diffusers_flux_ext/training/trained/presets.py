"""Presets of what a LoRA updates, as patterns of names."""

from __future__ import annotations

from collections.abc import Mapping

from ...lora.keys import Component


_ATTENTION = ("transformer_blocks.*.attn.*", "single_transformer_blocks.*.attn.*")
_MLP = (
    "transformer_blocks.*.ff.net.*",
    "transformer_blocks.*.ff_context.net.*",
    "single_transformer_blocks.*.proj_mlp",
    "single_transformer_blocks.*.proj_out",
)
_MODULATION = (
    "transformer_blocks.*.norm1.linear",
    "transformer_blocks.*.norm1_context.linear",
    "single_transformer_blocks.*.norm.linear",
)
_TRANSFORMER = {
    "attention": _ATTENTION,
    "attention+mlp": (*_ATTENTION, *_MLP),
    "reference": (*_ATTENTION, *_MLP, *_MODULATION),
    "all-linear": ("*",),
}
_CLIP = {
    "attention": ("*.self_attn.*_proj",),
    "attention+mlp": ("*.self_attn.*_proj", "*.mlp.fc?"),
    "all-linear": ("*",),
}
_T5 = {
    "attention": ("*.SelfAttention.?",),
    "attention+mlp": ("*.SelfAttention.?", "*.DenseReluDense.w*"),
    "all-linear": ("*",),
}

LORA_PRESETS: Mapping[Component, Mapping[str, tuple[str, ...]]] = {
    "transformer": _TRANSFORMER,
    "text_encoder": _CLIP,
    "text_encoder_2": _T5,
}
"""Patterns of each preset, by model.

`"reference"` stands for the 304 layers of DiffSynth-Studio's recipes: attention, MLP and modulation of all blocks.
"""
