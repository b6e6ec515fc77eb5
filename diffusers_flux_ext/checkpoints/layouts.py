"""The key layouts of FLUX.1 transformer checkpoints, and the conversion between any two of them.

A layout is recognised by its key names, a conversion is planned from names and shapes alone, and tensors are touched
one at a time when the plan is carried out. So the header of a file determines everything but the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from .messages import list_keys, list_shapes
from .sizes import is_index


TransformerLayout = Literal["diffusers", "bfl", "diffsynth"]
Shapes = Mapping[str, Sequence[int]]
LAYOUTS: tuple[TransformerLayout, ...] = get_args(TransformerLayout)

# Black Forest Labs' layout is published with and without the prefix that ComfyUI gives it.
PREFIX = "model.diffusion_model."

# One row per layer: diffusers (the parts of a fused layer in order), Black Forest Labs, DiffSynth-Studio.
Row = tuple[tuple[str, ...], str, str]
GLOBAL_LINEARS: tuple[Row, ...] = (
    (("x_embedder",), "img_in", "x_embedder"),
    (("context_embedder",), "txt_in", "context_embedder"),
    (("time_text_embed.timestep_embedder.linear_1",), "time_in.in_layer", "time_embedder.timestep_embedder.0"),
    (("time_text_embed.timestep_embedder.linear_2",), "time_in.out_layer", "time_embedder.timestep_embedder.2"),
    (("time_text_embed.guidance_embedder.linear_1",), "guidance_in.in_layer", "guidance_embedder.timestep_embedder.0"),
    (
        ("time_text_embed.guidance_embedder.linear_2",),
        "guidance_in.out_layer",
        "guidance_embedder.timestep_embedder.2",
    ),
    (("time_text_embed.text_embedder.linear_1",), "vector_in.in_layer", "pooled_text_embedder.0"),
    (("time_text_embed.text_embedder.linear_2",), "vector_in.out_layer", "pooled_text_embedder.2"),
    (("norm_out.linear",), "final_layer.adaLN_modulation.1", "final_norm_out.linear"),
    (("proj_out",), "final_layer.linear", "final_proj_out"),
)
DOUBLE_BLOCKS = ("transformer_blocks.{}.", "double_blocks.{}.", "blocks.{}.")
DOUBLE_LINEARS: tuple[Row, ...] = (
    (("norm1.linear",), "img_mod.lin", "norm1_a.linear"),
    (("norm1_context.linear",), "txt_mod.lin", "norm1_b.linear"),
    (("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv", "attn.a_to_qkv"),
    (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv", "attn.b_to_qkv"),
    (("attn.to_out.0",), "img_attn.proj", "attn.a_to_out"),
    (("attn.to_add_out",), "txt_attn.proj", "attn.b_to_out"),
    (("ff.net.0.proj",), "img_mlp.0", "ff_a.0"),
    (("ff.net.2",), "img_mlp.2", "ff_a.2"),
    (("ff_context.net.0.proj",), "txt_mlp.0", "ff_b.0"),
    (("ff_context.net.2",), "txt_mlp.2", "ff_b.2"),
)
DOUBLE_NORMS: tuple[Row, ...] = (
    (("attn.norm_q",), "img_attn.norm.query_norm", "attn.norm_q_a"),
    (("attn.norm_k",), "img_attn.norm.key_norm", "attn.norm_k_a"),
    (("attn.norm_added_q",), "txt_attn.norm.query_norm", "attn.norm_q_b"),
    (("attn.norm_added_k",), "txt_attn.norm.key_norm", "attn.norm_k_b"),
)
SINGLE_BLOCKS = ("single_transformer_blocks.{}.", "single_blocks.{}.", "single_blocks.{}.")
SINGLE_LINEARS: tuple[Row, ...] = (
    (("norm.linear",), "modulation.lin", "norm.linear"),
    (("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1", "to_qkv_mlp"),
    (("proj_out",), "linear2", "proj_out"),
)
SINGLE_NORMS: tuple[Row, ...] = (
    (("attn.norm_q",), "norm.query_norm", "norm_q_a"),
    (("attn.norm_k",), "norm.key_norm", "norm_k_a"),
)
# Rows of a fused tensor that belong to its parts, as shares; the MLP of a single block is four times as wide.
SHARES = {1: (1,), 3: (1, 1, 1), 4: (1, 1, 1, 4)}
# Scale and shift are in this order in diffusers, and the other way round elsewhere.
SWAPPED_HALVES = frozenset({"norm_out.linear"})

CONNECTOR = "connector."
"""Begins the keys of the model that Step1X-Edit's published files hold beside the transformer."""


@dataclass(frozen=True)
class TensorNames:
    """One tensor as each layout spells it, with `{}` for the index of its block; diffusers has it in parts."""

    diffusers: tuple[str, ...]
    bfl: str
    diffsynth: str
    swap_halves: bool

    def keys(self, layout: TransformerLayout) -> tuple[str, ...]:
        """Return the keys in `layout`: the parts in diffusers', a single one in the others."""
        return self.diffusers if layout == "diffusers" else (getattr(self, layout),)


def _spell(
    rows: tuple[Row, ...], prefixes: tuple[str, str, str], suffixes: tuple[tuple[str, str], ...]
) -> Iterator[TensorNames]:
    for parts, bfl, diffsynth in rows:
        for suffix, bfl_suffix in suffixes:
            yield TensorNames(
                diffusers=tuple(f"{prefixes[0]}{part}.{suffix}" for part in parts),
                bfl=f"{prefixes[1]}{bfl}.{bfl_suffix}",
                diffsynth=f"{prefixes[2]}{diffsynth}.{suffix}",
                swap_halves=parts[0] in SWAPPED_HALVES,
            )


_LINEAR = (("weight", "weight"), ("bias", "bias"))
_NORM = (("weight", "scale"),)
TENSORS: tuple[TensorNames, ...] = (
    *_spell(GLOBAL_LINEARS, ("", "", ""), _LINEAR),
    *_spell(DOUBLE_LINEARS, DOUBLE_BLOCKS, _LINEAR),
    *_spell(DOUBLE_NORMS, DOUBLE_BLOCKS, _NORM),
    *_spell(SINGLE_LINEARS, SINGLE_BLOCKS, _LINEAR),
    *_spell(SINGLE_NORMS, SINGLE_BLOCKS, _NORM),
)
_BY_KEY: dict[TransformerLayout, dict[str, TensorNames]] = {
    layout: {key: names for names in TENSORS for key in names.keys(layout)} for layout in LAYOUTS
}


def split_block_index(key: str) -> tuple[str, str]:
    """Split a key into its form with `{}` for the index of the block, and the index (`""` outside blocks)."""
    parts = key.removeprefix(PREFIX).split(".")
    if len(parts) > 2 and parts[0].endswith("blocks") and is_index(parts[1]):
        return ".".join([parts[0], "{}", *parts[2:]]), parts[1]
    return ".".join(parts), ""


def detect_transformer_layout(keys: Iterable[str]) -> TransformerLayout:
    """Recognise the layout of a FLUX.1 transformer by its keys, with or without the prefix `model.diffusion_model.`.

    Args:
        keys (`Iterable[str]`):
            Keys of a state dict or of a file header. Unknown keys are ignored as long as one layout knows most.

    Returns:
        `str`: `"diffusers"`, `"bfl"` (Black Forest Labs) or `"diffsynth"` (DiffSynth-Studio).

    Raises:
        ValueError: If no layout matches any key, or two match equally many.
    """
    keys = list(keys)
    forms = [split_block_index(key)[0] for key in keys]
    counts = {layout: sum(form in _BY_KEY[layout] for form in forms) for layout in LAYOUTS}
    best = max(counts.values())
    candidates = [layout for layout in LAYOUTS if counts[layout] == best]
    if best == 0:
        raise ValueError(f"No key belongs to a FLUX.1 transformer in any of the layouts {LAYOUTS}: {list_keys(keys)}.")
    if len(candidates) > 1:
        raise ValueError(f"The keys fit the layouts {candidates} equally well: {list_keys(keys)}.")
    return candidates[0]


def spell_in_layout(diffusers_key: str, layout: TransformerLayout) -> str:
    """Return the key of a file in `layout` that holds the tensor which diffusers calls `diffusers_key`."""
    form, index = split_block_index(diffusers_key)
    names = _BY_KEY["diffusers"].get(form)
    if names is None:
        return diffusers_key
    return diffusers_key if layout == "diffusers" else names.keys(layout)[0].format(index)


@dataclass(frozen=True)
class TensorRecipe:
    """How one tensor of the target layout is made.

    Attributes:
        sources (`tuple[str, ...]`):
            Keys of the source; several are concatenated along rows.
        shape (`tuple[int, ...]`):
            Shape of the result.
        rows (`tuple[int, int]`, *optional*):
            The rows of the source that are taken; all by default.
        swap_halves (`bool`):
            Whether the two halves of the rows change places.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    swap_halves: bool = False

    def build(self, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Make the tensor; `read` gives the source's tensor of a key. It may share memory with the source."""
        parts = [read(key) for key in self.sources]
        dtypes = {str(part.dtype) for part in parts}
        if len(dtypes) > 1:
            raise ValueError(
                f"The parts of a fused layer must have one data type, got {sorted(dtypes)}: {list_keys(self.sources)}."
            )
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.rows is not None:
            tensor = tensor[slice(*self.rows)]
        # A list, since diffusers' GGUF tensors lose their type in a tuple.
        return torch.cat(list(tensor.chunk(2))[::-1]) if self.swap_halves else tensor


def _split(names: TensorNames, index: str, key: str, shape: Sequence[int]) -> Iterator[tuple[str, TensorRecipe]]:
    if len(names.diffusers) == 1:
        yield names.diffusers[0].format(index), TensorRecipe((key,), tuple(shape), None, names.swap_halves)
        return
    shares = SHARES[len(names.diffusers)]
    unit, rest = divmod(shape[0] if shape else 1, sum(shares))
    if rest:
        raise ValueError(
            f"`{key}` has shape {tuple(shape)}; its rows should be a multiple of {sum(shares)} to be split into "
            f"{list_keys(names.diffusers)}."
        )
    start = 0
    for part, share in zip(names.diffusers, shares):
        stop = start + share * unit
        yield part.format(index), TensorRecipe((key,), (stop - start, *shape[1:]), (start, stop))
        start = stop


def _join(names: TensorNames, index: str, layout: TransformerLayout, shapes: Shapes) -> tuple[str, TensorRecipe]:
    sources = tuple(part.format(index) for part in names.diffusers)
    missing = [key for key in sources if key not in shapes]
    if missing:
        raise ValueError(f"Keys of a fused layer are missing: {list_keys(missing)} beside {list_keys(sources)}.")
    first = shapes[sources[0]]
    if not first:
        raise ValueError(f"`{sources[0]}` is a single number; expected a matrix, or a vector for a bias.")
    expected = [(first[0] * share, *first[1:]) for share in SHARES[len(sources)]]
    wrong = {key: tuple(shapes[key]) for key, shape in zip(sources, expected) if tuple(shapes[key]) != shape}
    if wrong:
        raise ValueError(
            f"The parts of a fused layer have the shapes {list_shapes(wrong)} beside {tuple(first)} of `{sources[0]}`."
        )
    shape = (first[0] * sum(SHARES[len(sources)]), *first[1:])
    return names.keys(layout)[0].format(index), TensorRecipe(sources, shape, None, names.swap_halves)


def _check_known(keys: Iterable[str], layout: TransformerLayout) -> None:
    unknown = [key for key in keys if split_block_index(key)[0] not in _BY_KEY[layout]]
    if unknown:
        raise ValueError(
            f"Keys that do not belong to a FLUX.1 transformer in the {layout!r} layout: {list_keys(unknown)}. Remove "
            f"them if they belong to something else, such as an adapter, a text encoder or a quantisation."
        )


def plan_transformer_conversion(shapes: Shapes, to: TransformerLayout = "diffusers") -> dict[str, TensorRecipe]:
    """Plan the conversion of a FLUX.1 transformer of any width and depth from the shapes of its tensors.

    Args:
        shapes (`Mapping[str, Sequence[int]]`):
            Shapes by key, in any layout.
        to (`str`, *optional*, defaults to `"diffusers"`):
            The layout to convert to: `"diffusers"`, `"bfl"` or `"diffsynth"`.

    Returns:
        `dict[str, TensorRecipe]`: How each tensor of the target layout is made.

    Raises:
        ValueError: If `to` or a key is unknown, if parts of a fused layer are missing or do not fit together.
    """
    if to not in LAYOUTS:
        raise ValueError(f"`to` is {to!r}; expected one of {LAYOUTS}.")
    layout = detect_transformer_layout(shapes)
    _check_known(shapes, layout)
    keys = {key.removeprefix(PREFIX): key for key in shapes}
    if len(keys) != len(shapes):
        raise ValueError(
            f"Keys stand both with and without the prefix `{PREFIX}`: {list_keys(set(keys) & set(shapes))}."
        )
    bare = {key: shapes[full] for key, full in keys.items()}
    plan: dict[str, TensorRecipe] = {}
    for key, shape in bare.items():
        plan.update(_recipes(key, shape, layout, to, bare))
    return {key: replace(recipe, sources=tuple(keys[s] for s in recipe.sources)) for key, recipe in plan.items()}


def _recipes(
    key: str, shape: Sequence[int], layout: TransformerLayout, to: TransformerLayout, shapes: Shapes
) -> Iterable[tuple[str, TensorRecipe]]:
    form, index = split_block_index(key)
    names = _BY_KEY[layout][form]
    if names.swap_halves and (not shape or shape[0] % 2):
        raise ValueError(f"`{key}` has the shape {tuple(shape)}; expected an even number of rows, scale and shift.")
    if to == layout:
        return [(key, TensorRecipe((key,), tuple(shape)))]
    if to == "diffusers":
        return _split(names, index, key, shape)
    if layout == "diffusers":
        return [_join(names, index, to, shapes)]
    return [(names.keys(to)[0].format(index), TensorRecipe((key,), tuple(shape)))]


def convert_transformer_state_dict(
    state_dict: Mapping[str, torch.Tensor], to: TransformerLayout = "diffusers"
) -> dict[str, torch.Tensor]:
    """Convert a FLUX.1 transformer of any width and depth between key layouts. The result has no prefix.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            Weights in any layout; not changed. Unfused and renamed tensors share memory with it.
        to (`str`, *optional*, defaults to `"diffusers"`):
            The layout to convert to: `"diffusers"`, `"bfl"` (Black Forest Labs) or `"diffsynth"` (DiffSynth-Studio).

    Returns:
        `dict[str, torch.Tensor]`: The weights in the other layout, with their dtypes and devices.

    Raises:
        ValueError: If `to` or a key is unknown, if parts of a fused layer are missing or do not fit together.
    """
    plan = plan_transformer_conversion({key: tensor.shape for key, tensor in state_dict.items()}, to)
    return {key: recipe.build(state_dict.__getitem__) for key, recipe in plan.items()}


def has_connector(shapes: Mapping[str, Any]) -> bool:
    """Whether a transformer's file holds another model beside it, as Step1X-Edit's published ones do."""
    return f"{CONNECTOR}global_proj_out.weight" in shapes
