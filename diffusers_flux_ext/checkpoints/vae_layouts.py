"""The key layouts of FLUX.1's VAE in single files: Black Forest Labs', diffusers', DiffSynth-Studio's halves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from .key_tables import KeyTable, plan_by_tables, spelled
from .layouts import Shapes, TensorRecipe
from .messages import list_keys
from .sizes import check_dimensions, count_blocks


Half = Literal["encoder", "decoder"]
HALVES: tuple[Half, Half] = ("encoder", "decoder")
VAE_PREFIXES = ("first_stage_model.", "vae.", "")
LEVELS, LAYERS, GROUPS = 4, 2, 32
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


def _levels(half: Half) -> Iterator[tuple[int, str, int, str]]:
    """Yield the number of a level in our order, the name of its list, its layers and what follows them."""
    lists, layers, sampler = {
        "encoder": ("down_blocks", LAYERS, "downsamplers.0.conv"),
        "decoder": ("up_blocks", LAYERS + 1, "upsamplers.0.conv"),
    }[half]
    for level in range(LEVELS):
        yield level, lists, layers, sampler if level < LEVELS - 1 else ""


def _bfl_rows(half: Half) -> Rows:
    rows: Rows = [("conv_in", "conv_in"), ("conv_norm_out", "norm_out"), ("conv_out", "conv_out")]
    direction, sample = {"encoder": ("down", "downsample"), "decoder": ("up", "upsample")}[half]
    for level, lists, layers, sampler in _levels(half):
        # The decoder's levels are numbered from the last one there.
        number = level if half == "encoder" else LEVELS - 1 - level
        for layer in range(layers):
            ours, theirs = f"{lists}.{level}.resnets.{layer}", f"{direction}.{number}.block.{layer}"
            rows += _resnet(ours, theirs, "nin_shortcut")
        if sampler:
            rows.append((f"{lists}.{level}.{sampler}", f"{direction}.{number}.{sample}.conv"))
    for index in range(2):
        rows += _resnet(f"mid_block.resnets.{index}", f"mid.block_{index + 1}", "nin_shortcut")
    return rows + [(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{bfl}") for ours, bfl, _ in _ATTENTION]


def _diffsynth_rows(half: Half) -> Rows:
    """Return the rows of a half whose modules are numbered in the order in which they run."""
    order: list[Rows] = []
    middle: list[Rows] = [
        [(f"mid_block.resnets.0.{own}", other) for own, other in (*_RESNET, ("conv_shortcut", "conv_shortcut"))],
        [(f"mid_block.attentions.0.{ours}", theirs) for ours, _, theirs in _ATTENTION],
        [(f"mid_block.resnets.1.{own}", other) for own, other in (*_RESNET, ("conv_shortcut", "conv_shortcut"))],
    ]
    for level, lists, layers, sampler in _levels(half):
        for layer in range(layers):
            names = (*_RESNET, ("conv_shortcut", "conv_shortcut"))
            order.append([(f"{lists}.{level}.resnets.{layer}.{own}", other) for own, other in names])
        if sampler:
            order.append([(f"{lists}.{level}.{sampler}", "conv")])
    order = [*order, *middle] if half == "encoder" else [*middle, *order]
    rows: Rows = [(name, name) for name in ("conv_in", "conv_norm_out", "conv_out")]
    return rows + [(ours, f"blocks.{place}.{theirs}") for place, part in enumerate(order) for ours, theirs in part]


def _literal(rows: Rows, half: Half, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Spell rows of a half without placeholders."""
    return dict(spelled(rows, LINEAR, f"{half}.", prefix))


def _table(name: str, keys: Mapping[str, tuple[str, ...]]) -> KeyTable:
    # The numbers of blocks change from one layout to the other.
    return KeyTable(name, keys, literal=True)


_OWN = {
    key: (key,)
    for half in HALVES
    for ours, _ in _bfl_rows(half)
    for key in (f"{half}.{ours}.weight", f"{half}.{ours}.bias")
}
# diffusers' names of the attention before 0.17.
_FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_FORMER_KEYS = {
    key.replace(f"attentions.0.{name}.", f"attentions.0.{former}."): parts
    for name, former in _FORMER.items()
    for key, parts in _OWN.items()
    if f"attentions.0.{name}." in key
}
_QUANT = {f"{name}.{suffix}": (f"{name}.{suffix}",) for name in ("quant_conv", "post_quant_conv") for suffix in LINEAR}
VAE_TABLES = (
    _table(
        "Black Forest Labs",
        {key: parts for half in HALVES for key, parts in _literal(_bfl_rows(half), half, f"{half}.").items()} | _QUANT,
    ),
    _table("diffusers", {**_OWN, **_FORMER_KEYS, **_QUANT}),
)
HALF_TABLES = {half: _table("DiffSynth-Studio", _literal(_diffsynth_rows(half), half)) for half in HALVES}


def plan_vae(shapes: Shapes) -> dict[str, TensorRecipe]:
    """Plan how the tensors of FLUX.1's VAE are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key, in the layout of Black Forest Labs, with the prefixes `vae.` or `first_stage_model.` too, or
            of diffusers.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of `AutoencoderKL`.

    Raises:
        ValueError: if it is another model, or a key is unknown.
    """
    return _plan("the VAE of FLUX.1", shapes, VAE_TABLES)


def plan_vae_half(shapes: Shapes, half: Half) -> dict[str, TensorRecipe]:
    """Plan how the tensors of the encoder or the decoder are taken from a file.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key: of a whole VAE, whose other half is left out, or of the half in DiffSynth-Studio's layout.
        half (`"encoder"` or `"decoder"`): Which one.

    Returns:
        `dict[str, TensorRecipe]`: a recipe for each key of that half of `AutoencoderKL`.

    Raises:
        ValueError: if it is another model, or a key is unknown.
    """
    plan = _plan(f"the VAE's {half}", shapes, (*VAE_TABLES, HALF_TABLES[half]))
    return {key: recipe for key, recipe in plan.items() if key.startswith(f"{half}.")}


def _plan(what: str, shapes: Shapes, tables: tuple[KeyTable, ...]) -> dict[str, TensorRecipe]:
    return plan_by_tables(what, shapes, tables, VAE_PREFIXES)


def infer_vae_config(plan: Mapping[str, TensorRecipe]) -> dict[str, Any]:
    """Infer the arguments of [`AutoencoderKLFlux`] from a plan; its norms have 32 groups, as released.

    Args:
        plan (`Mapping[str, TensorRecipe]`): From [`plan_vae`].

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if tensors that determine a size are missing, or the VAE has other levels than FLUX.1's.
    """
    widths = [f"encoder.down_blocks.{level}.resnets.0.conv1.weight" for level in range(LEVELS)]
    sized = [*widths, "decoder.conv_in.weight"]
    missing = [key for key in sized if key not in plan]
    if missing:
        raise ValueError(f"The file of the VAE of FLUX.1 is not complete: missing are {list_keys(missing)}.")
    check_dimensions({key: plan[key].shape for key in sized}, dict.fromkeys(sized, 4))
    count_blocks(plan, "encoder.down_blocks")
    return {
        "block_out_channels": tuple(plan[key].shape[0] for key in widths),
        "latent_channels": plan["decoder.conv_in.weight"].shape[1],
        "norm_num_groups": GROUPS,
        "use_quant_conv": "quant_conv.weight" in plan,
        "use_post_quant_conv": "post_quant_conv.weight" in plan,
    }
