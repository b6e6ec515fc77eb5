"""The key layouts of FLUX.1's VAE in single files: Black Forest Labs', diffusers', DiffSynth-Studio's halves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from .key_tables import KeyTable, find_prefixes, plan_by_tables, sized, spelled, split_indices
from .layouts import Shapes, TensorRecipe
from .sizes import count_blocks


Half = Literal["encoder", "decoder"]
HALVES: tuple[Half, Half] = ("encoder", "decoder")
VAE = "the VAE of FLUX.1"
LEVELS, LAYERS = 4, 2
# FLUX.1's; they leave no trace in the weights.
GROUPS, SCALING_FACTOR, SHIFT_FACTOR = 32, 0.3611, 0.1159
LINEAR = ("weight", "bias")

Rows = list[tuple[str, str]]
"""Ours and the file's name of each module of one half."""

# Ours, Black Forest Labs', DiffSynth-Studio's.
_RESNET = (("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"))
_ATTENTION = (
    ("group_norm", "norm", "norm"),
    *((f"to_{part}", part, f"transformer_blocks.0.to_{part}") for part in "qkv"),
    ("to_out.0", "proj_out", "transformer_blocks.0.to_out"),
)


def _resnet(ours: str, theirs: str, shortcut: str) -> Rows:
    return [(f"{ours}.{own}", f"{theirs}.{other}") for own, other in (*_RESNET, ("conv_shortcut", shortcut))]


def _bfl_rows(half: Half) -> Rows:
    lists, direction, sampler, sample = {
        "encoder": ("down_blocks", "down", "downsamplers", "downsample"),
        "decoder": ("up_blocks", "up", "upsamplers", "upsample"),
    }[half]
    rows: Rows = [("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")]
    rows += _resnet(f"{lists}.{{}}.resnets.{{}}", f"{direction}.{{}}.block.{{}}", "nin_shortcut")
    rows.append((f"{lists}.{{}}.{sampler}.0.conv", f"{direction}.{{}}.{sample}.conv"))
    for index in range(2):
        rows += _resnet(f"mid_block.resnets.{index}", f"mid.block_{index + 1}", "nin_shortcut")
    return rows + [(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{bfl}") for ours, bfl, _ in _ATTENTION]


def _diffsynth_rows(half: Half) -> Rows:
    """Return the rows of a half whose modules are numbered in the order in which they run."""
    lists, layers, sampler = {
        "encoder": ("down_blocks", LAYERS, "downsamplers.0.conv"),
        "decoder": ("up_blocks", LAYERS + 1, "upsamplers.0.conv"),
    }[half]
    order: list[Rows] = []
    for level in range(LEVELS):
        order += [_resnet(f"{lists}.{level}.resnets.{layer}", "", "conv_shortcut") for layer in range(layers)]
        if level < LEVELS - 1:
            order.append([(f"{lists}.{level}.{sampler}", ".conv")])
    middle: list[Rows] = [_resnet(f"mid_block.resnets.{index}", "", "conv_shortcut") for index in range(2)]
    middle.insert(1, [(f"mid_block.attentions.0.{ours}", f".{theirs}") for ours, _, theirs in _ATTENTION])
    order = [*order, *middle] if half == "encoder" else [*middle, *order]
    rows: Rows = [(name, name) for name in ("conv_in", "conv_norm_out", "conv_out")]
    return rows + [(ours, f"blocks.{place}{theirs}") for place, part in enumerate(order) for ours, theirs in part]


_BFL = {key: parts for half in HALVES for key, parts in spelled(_bfl_rows(half), LINEAR, f"{half}.", f"{half}.")}
_QUANT = dict(spelled([(name, name) for name in ("quant_conv", "post_quant_conv")], LINEAR))
_OWN = {split_indices(ours)[0]: (split_indices(ours)[0],) for (ours,) in _BFL.values()}
# diffusers' names of the attention before 0.17.
_FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.{}": "proj_attn"}
_FORMER_KEYS = {
    f"{half}.mid_block.attentions.{{}}.{former}.{suffix}": (
        f"{half}.mid_block.attentions.{{}}.{name.replace('{}', '0')}.{suffix}",
    )
    for half in HALVES
    for name, former in _FORMER.items()
    for suffix in LINEAR
}
VAE_TABLES = (
    KeyTable("Black Forest Labs", {**_BFL, **_QUANT}),
    KeyTable("diffusers", {**_OWN, **_FORMER_KEYS, **_QUANT}),
)
# The numbers of blocks change from one layout to the other.
HALF_TABLES = {
    half: KeyTable("DiffSynth-Studio", dict(spelled(_diffsynth_rows(half), LINEAR, f"{half}.")), literal=True)
    for half in HALVES
}
_IN, _OUT = "conv_in.weight", "conv_out.weight"
_MARKS = tuple(f"{half}.{_IN}" for half in HALVES)


def has_vae(keys: Iterable[str]) -> bool:
    """Whether there is an autoencoder among the tensors of a file, by their keys."""
    keys = set(keys)
    return any(all(start + mark in keys for mark in _MARKS) for start in find_prefixes(keys, _MARKS))


def plan_vae(shapes: Shapes) -> dict[str, TensorRecipe]:
    """Plan how the tensors of FLUX.1's VAE are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key, in the layout of Black Forest Labs, which is that of latent diffusion, or of diffusers,
            after any prefix such as `vae.`.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of `AutoencoderKL`.

    Raises:
        ValueError: if it is another model, there are several, or a key is unknown.
    """
    plan = plan_by_tables(VAE, shapes, VAE_TABLES, _MARKS)
    return _from_latents(plan, count_blocks(plan, "decoder.up_blocks"))


def plan_vae_half(shapes: Shapes, half: Half) -> dict[str, TensorRecipe]:
    """Plan how the tensors of the encoder or the decoder are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key: of a whole VAE, whose other half is left out, or of the half in DiffSynth-Studio's layout.
        half (`"encoder"` or `"decoder"`): Which one.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of that half of `AutoencoderKL`.

    Raises:
        ValueError: if it is another model, there are several, or a key is unknown.
    """
    tables = (*VAE_TABLES, HALF_TABLES[half])
    # Some weights alone do not show how many levels there are.
    plan = _from_latents(plan_by_tables(f"the VAE's {half}", shapes, tables, _MARKS), LEVELS)
    return {key: recipe for key, recipe in plan.items() if key.startswith(f"{half}.")}


def _from_latents(plan: Mapping[str, TensorRecipe], levels: int) -> dict[str, TensorRecipe]:
    """Return a plan with diffusers' numbers of the decoder's levels; Black Forest Labs count them from the image."""

    def renumbered(key: str, recipe: TensorRecipe) -> str:
        if "decoder.up." not in recipe.sources[0]:
            return key
        return re.sub(r"(?<=\.up_blocks\.)\d+", lambda found: str(levels - 1 - int(found[0])), key, count=1)

    return {renumbered(key, recipe): recipe for key, recipe in plan.items()}


def infer_vae_config(plan: Mapping[str, TensorRecipe], given: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the arguments of `AutoencoderKL` from a plan; what leaves no trace in the shapes is FLUX.1's.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_vae`].
        given (`Mapping[str, Any]`): Arguments that replace inferred ones.

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if tensors that determine a size are missing, or the channels are not multiples of 32 and
            `norm_num_groups` is not given.
    """
    levels = max(1, count_blocks(plan, "encoder.down_blocks"))
    first = [f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in range(levels)]
    ends = (f"encoder.{_IN}", f"decoder.{_OUT}", f"decoder.{_IN}")
    image, drawn, latents, *widths = sized(VAE, plan, dict.fromkeys((*ends, *first), 4))
    channels = tuple(shape[0] for shape in widths)
    config = {
        "in_channels": image[1],
        "out_channels": drawn[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": channels,
        "layers_per_block": count_blocks(plan, "encoder.down_blocks.0.resnets"),
        "latent_channels": latents[1],
        "norm_num_groups": None if any(width % GROUPS for width in channels) else GROUPS,
        "scaling_factor": SCALING_FACTOR,
        "shift_factor": SHIFT_FACTOR,
        "use_quant_conv": "quant_conv.weight" in plan,
        "use_post_quant_conv": "post_quant_conv.weight" in plan,
        "mid_block_add_attention": any(".mid_block.attentions.0." in key for key in plan),
        **given,
    }
    if not config["norm_num_groups"]:
        raise ValueError(
            f"The autoencoder has {channels} channels, which groups of normalisation, {GROUPS} in FLUX.1, do not "
            "divide, and their number leaves no trace in the weights. Pass `norm_num_groups`, or keep the model's "
            "`config.json` beside the file."
        )
    return config
