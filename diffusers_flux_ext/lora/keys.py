"""How LoRA files name the layers of FLUX.1 and of its text encoders, and the parts of an adapter.

A key is `PREFIX + LAYER + SUFFIX`, and the three vary independently between trainers. So every key is taken apart on
its own, with one table of layers (shared with whole checkpoints) and one of suffixes; the name of a file's format is
a diagnosis that is never needed to convert it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ..checkpoints.layouts import (
    DOUBLE_BLOCKS,
    DOUBLE_LINEARS,
    DOUBLE_NORMS,
    GLOBAL_LINEARS,
    SHARES,
    SINGLE_BLOCKS,
    SINGLE_LINEARS,
    SINGLE_NORMS,
    SWAPPED_HALVES,
    Row,
)
from ..checkpoints.sizes import is_index


Component = Literal["transformer", "text_encoder", "text_encoder_2"]
Namespace = Literal["diffusers", "bfl", "bfl_split", "diffsynth", "xlabs", "clip", "t5"]


@dataclass(frozen=True)
class LayerName:
    """A layer as named in one layout.

    Attributes:
        namespace (`str`): The layout.
        form (`str`): The spelling, with `{}` for the index of the block.
        targets (`tuple[str, ...]`): The diffusers layers whose rows it stacks, in order, with `{}` for the index.
        swap_halves (`bool`): Whether the two halves of its rows are swapped compared with diffusers.
        is_norm (`bool`): Whether the layer is a normalisation, with a vector for a weight.
    """

    namespace: Namespace
    form: str
    targets: tuple[str, ...]
    swap_halves: bool = False
    is_norm: bool = False

    @property
    def shares(self) -> tuple[int, ...]:
        """The rows of each target, as shares of the whole."""
        return SHARES[len(self.targets)]


@dataclass(frozen=True)
class LoRAKey:
    """A key of a LoRA file, split into its parts.

    Attributes:
        prefix (`str`): The part before the layer.
        body (`str`): The layer as named in the key.
        component (`str`): `"transformer"`, `"text_encoder"` (CLIP) or `"text_encoder_2"` (T5).
        layer (`LayerName`): The layer.
        index (`str`): Index of the block, empty outside blocks.
        part (`str`): Canonical name of the part: `"down"`, `"up"`, `"alpha"`, `"lokr_w1"`, ...
        suffix (`str`): The part as named in the key.
        adapter_name (`str`, *optional*): PEFT's name of the adapter, where the key has one.
    """

    prefix: str
    body: str
    component: Component
    layer: LayerName
    index: str
    part: str
    suffix: str
    adapter_name: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The diffusers layers that this one stacks, with their index."""
        return tuple(f"{self.component}.{target.format(self.index)}" for target in self.layer.targets)

    @property
    def is_flat(self) -> bool:
        """Whether the layer is spelled with underscores for dots."""
        return self.prefix.endswith("_")


# ---- layers -------------------------------------------------------------------------------------------------------

_GROUPS: tuple[tuple[tuple[str, str, str], tuple[Row, ...], bool], ...] = (
    (("", "", ""), GLOBAL_LINEARS, False),
    (DOUBLE_BLOCKS, DOUBLE_LINEARS, False),
    (SINGLE_BLOCKS, SINGLE_LINEARS, False),
    (DOUBLE_BLOCKS, DOUBLE_NORMS, True),
    (SINGLE_BLOCKS, SINGLE_NORMS, True),
)


def _transformer_layers() -> Iterator[LayerName]:
    """Return the three layouts of whole checkpoints, and the parts of Black Forest Labs' fused layers by number."""
    for blocks, rows, is_norm in _GROUPS:
        for parts, bfl, diffsynth in rows:
            targets = tuple(blocks[0] + part for part in parts)
            swap = parts[0] in SWAPPED_HALVES
            for target in targets:
                yield LayerName("diffusers", target, (target,), False, is_norm)
            yield LayerName("bfl", blocks[1] + bfl, targets, swap, is_norm)
            yield LayerName("diffsynth", blocks[2] + diffsynth, targets, swap, is_norm)
            if len(targets) > 1:
                for number, target in enumerate(targets):
                    yield LayerName("bfl_split", f"{blocks[1]}{bfl}.{number}", (target,))


# Spellings outside the checkpoint layouts: namespace, form, diffusers layers.
_QKV, _ADDED_QKV = (tuple(DOUBLE_BLOCKS[0] + part for part in DOUBLE_LINEARS[row][0]) for row in (2, 3))
_SINGLE_QKV_MLP = tuple(SINGLE_BLOCKS[0] + part for part in SINGLE_LINEARS[1][0])
_SINGLE_QKV = _SINGLE_QKV_MLP[:3]
_EXTRA_LAYERS: tuple[tuple[Namespace, str, tuple[str, ...]], ...] = (
    # diffusers with fused projections
    ("diffusers", "transformer_blocks.{}.attn.to_qkv", _QKV),
    ("diffusers", "transformer_blocks.{}.attn.to_added_qkv", _ADDED_QKV),
    ("diffusers", "single_transformer_blocks.{}.attn.to_qkv", _SINGLE_QKV),
    # x-flux
    ("xlabs", "double_blocks.{}.processor.qkv_lora1", _QKV),
    ("xlabs", "double_blocks.{}.processor.qkv_lora2", _ADDED_QKV),
    ("xlabs", "double_blocks.{}.processor.proj_lora1", ("transformer_blocks.{}.attn.to_out.0",)),
    ("xlabs", "double_blocks.{}.processor.proj_lora2", ("transformer_blocks.{}.attn.to_add_out",)),
    ("xlabs", "single_blocks.{}.processor.qkv_lora", _SINGLE_QKV),
    ("xlabs", "single_blocks.{}.processor.proj_lora", ("single_transformer_blocks.{}.proj_out",)),
    # DiffSynth before September 2024, and names that its loader leaves over from partial files
    ("diffsynth", "single_blocks.{}.linear", _SINGLE_QKV_MLP),
    *(("diffsynth", f"single_blocks.{{}}.a_to_{name}", (_SINGLE_QKV[i],)) for i, name in enumerate("qkv")),
    ("diffsynth", "single_blocks.{}.proj_in_besides_attn", (_SINGLE_QKV_MLP[3],)),
    *(("diffsynth", f"blocks.{{}}.attn.a_to_{name}", (_QKV[i],)) for i, name in enumerate("qkv")),
    *(("diffsynth", f"blocks.{{}}.attn.b_to_{name}", (_ADDED_QKV[i],)) for i, name in enumerate("qkv")),
)
_CLIP_LINEARS = tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")) + ("mlp.fc1", "mlp.fc2")
_CLIP_NORMS = ("layer_norm1", "layer_norm2")
_CLIP_GLOBALS = ("embeddings.token_embedding", "embeddings.position_embedding")
_T5_LINEARS = tuple(f"layer.0.SelfAttention.{name}" for name in "qkvo") + tuple(
    f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wi", "wo")
)


def _text_layers() -> Iterator[LayerName]:
    # transformers 5 dropped CLIP's level `text_model.`; files have either spelling.
    for level in ("text_model.", ""):
        block = f"{level}encoder.layers.{{}}."
        for name in (*(block + layer for layer in _CLIP_LINEARS), *(level + name for name in _CLIP_GLOBALS)):
            yield LayerName("clip", name, (name,))
        # The names that diffusers gave to these layers before PEFT.
        for name in ("q", "k", "v", "out"):
            yield LayerName("clip", f"{block}self_attn.to_{name}", (f"{block}self_attn.{name}_proj",))
        for name in (*(block + layer for layer in _CLIP_NORMS), f"{level}final_layer_norm"):
            yield LayerName("clip", name, (name,), is_norm=True)
    for name in _T5_LINEARS:
        yield LayerName("t5", f"encoder.block.{{}}.{name}", (f"encoder.block.{{}}.{name}",))
    for name in ("encoder.block.{}.layer.0.layer_norm", "encoder.block.{}.layer.1.layer_norm"):
        yield LayerName("t5", name, (name,), is_norm=True)
    yield LayerName("t5", "encoder.final_layer_norm", ("encoder.final_layer_norm",), is_norm=True)
    for name in ("shared", "encoder.embed_tokens", "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias"):
        yield LayerName("t5", name, (name,))


def _by_form(layers: Iterator[LayerName]) -> dict[str, LayerName]:
    table: dict[str, LayerName] = {}
    for layer in layers:
        # `x_embedder` and `context_embedder` are diffusers' and DiffSynth's alike; diffusers comes first.
        table.setdefault(layer.form, layer)
    return table


TRANSFORMER_LAYERS: dict[str, LayerName] = _by_form(
    iter((*_transformer_layers(), *(LayerName(space, form, targets) for space, form, targets in _EXTRA_LAYERS)))
)
_TEXT_LAYERS = list(_text_layers())
LAYERS: dict[Component, dict[str, LayerName]] = {
    "transformer": TRANSFORMER_LAYERS,
    "text_encoder": _by_form(layer for layer in _TEXT_LAYERS if layer.namespace == "clip"),
    "text_encoder_2": _by_form(layer for layer in _TEXT_LAYERS if layer.namespace == "t5"),
}


def flatten(name: str) -> str:
    """Return a layer's name as in kohya's and OneTrainer's flat keys."""
    return name.replace(".", "_")


_FLAT: dict[Component, dict[str, LayerName]] = {
    component: {flatten(form): layer for form, layer in table.items()} for component, table in LAYERS.items()
}
# The layers of one layout by the diffusers layers that they hold.
_IN_NAMESPACE: dict[str, dict[str, LayerName]] = {
    space: {t: layer for layer in layers if layer.namespace == space for t in layer.targets}
    for space, layers in (
        *((space, list(_transformer_layers())) for space in ("diffusers", "bfl", "diffsynth")),
        ("xlabs", list(TRANSFORMER_LAYERS.values())),
    )
}


def layer_in_namespace(target: str, namespace: str) -> LayerName | None:
    """Return the layer of a namespace that holds a diffusers layer (with `{}` for the index), if it has one."""
    return _IN_NAMESPACE[namespace].get(target)


# ---- prefixes and suffixes ----------------------------------------------------------------------------------------

# Wrappers may be nested, so stripping goes on until none matches; the longest comes first.
_DOTTED_PREFIXES: tuple[tuple[str, Component], ...] = (
    ("text_encoders.clip_l.transformer.", "text_encoder"),
    ("text_encoders.t5xxl.transformer.", "text_encoder_2"),
    ("base_model.model.", "transformer"),
    ("model.diffusion_model.", "transformer"),
    ("diffusion_model.", "transformer"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_encoder.", "text_encoder"),
    ("transformer.", "transformer"),
    ("pipe.dit.", "transformer"),
    ("_orig_mod.", "transformer"),
    ("module.", "transformer"),
    ("dit.", "transformer"),
)
# `lora_te2_` is T5 in OneTrainer's files; SDXL's second CLIP does not resolve to any layer of T5.
_FLAT_PREFIXES: tuple[tuple[str, Component], ...] = (
    ("lora_transformer_", "transformer"),
    ("lora_unet_", "transformer"),
    ("lycoris_", "transformer"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
)

_NAME = r"(?:\.(?P<name>(?!weight$|bias$|alpha$)[^.]+))?"
_SUFFIXES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern + "$"), part)
    for pattern, part in (
        (rf"\.lora_(?:A|down){_NAME}\.weight", "down"),
        (rf"\.lora_(?:B|up){_NAME}\.weight", "up"),
        (rf"\.lora_(?:B|up){_NAME}\.bias", "bias"),
        (r"[._]lora(?:_linear_layer)?\.down\.weight", "down"),
        (r"[._]lora(?:_linear_layer)?\.up\.weight", "up"),
        # AdaLoRA's factors are parameters, not layers, so they have no `.weight`.
        (rf"\.lora_A{_NAME}", "down"),
        (rf"\.lora_B{_NAME}", "up"),
        (rf"\.lora_E{_NAME}", "diagonal"),
        # diffusers also reads the name of a factor as that of its layer.
        (rf"(?:\.lora_(?:A|B|down|up){_NAME}\.weight)?\.alpha", "alpha"),
        (r"\.dora_scale", "magnitude"),
        (rf"\.lora_magnitude_vector{_NAME}(?:\.weight)?", "magnitude"),
        (r"\.magnitude", "magnitude"),
        (r"\.(?P<part>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))", ""),
        (r"\.(?P<part>diff|diff_b|w_norm|b_norm|set_weight|reshape_weight)", ""),
        (r"\.(?P<part>lora_time_(?:gamma|beta)\.(?:weight|bias))", ""),
        (r"\.(?P<part>oft_blocks(?:\.\d+)?|oft_R\.weight|rescale|on_input|(?:[ab][12]|bm)\.weight)", ""),
        (r"\.down\.weight", "down"),
        (r"\.up\.weight", "up"),
        (r"\.scale", "set"),
        (r"\.weight", "set"),
    )
)
# These suffixes mean something only after the layers of these kinds.
_XLABS_SUFFIXES = frozenset({".down.weight", ".up.weight"})
_NORM_SUFFIXES = frozenset({".scale", ".weight", ".w_norm", ".b_norm"})
_INDEX = re.compile(r"(?<=[._])(\d+)(?=[._])")

# Learned embeddings are stored with an adapter but are not part of it.
EXTRA_PREFIXES = ("bundle_emb.",)
EXTRA_KEYS = frozenset({"clip_l", "t5", "t5xxl"})


def is_extra(key: str) -> bool:
    """Whether a key is a textual inversion that is stored in the file."""
    return key.startswith(EXTRA_PREFIXES) or key in EXTRA_KEYS


def _strip_prefix(key: str) -> tuple[str, str, Component]:
    for prefix, component in _FLAT_PREFIXES:
        if key.startswith(prefix):
            return prefix, key[len(prefix) :], component
    rest, component = key, "transformer"
    found = True
    while found:
        found = False
        for prefix, of in _DOTTED_PREFIXES:
            if rest.startswith(prefix):
                rest, found = rest[len(prefix) :], True
                component = of if of != "transformer" else component
                break
    return key[: len(key) - len(rest)], rest, component


@lru_cache(maxsize=2**16)
def _find_layer(component: Component, body: str, is_flat: bool) -> tuple[LayerName, str] | None:
    """Return the layer and the index of its block; cached, since layers repeat for every part."""
    name = body.rstrip("_") if is_flat else body.replace(".processor.", ".", int(body.startswith("transformer_")))
    table = _FLAT[component] if is_flat else LAYERS[component]
    if name in table and "{}" not in name:
        return table[name], ""
    found = _INDEX.search(name)
    if found is None:
        return None
    layer = table.get(name[: found.start()] + "{}" + name[found.end() :])
    index = found.group(1)
    return (layer, index) if layer is not None and is_index(index) else None


def parse_lora_key(key: str) -> LoRAKey | None:
    """Split a key of a LoRA file into its parts.

    Args:
        key (`str`): A key in any layout.

    Returns:
        `LoRAKey`, or `None` if it is not a key of a FLUX.1 LoRA.
    """
    # Files name the same layers; a key that is too long to be one of them would only take room.
    return _parse(key) if len(key) < 300 else _parse.__wrapped__(key)


@lru_cache(maxsize=2**14)
def _parse(key: str) -> LoRAKey | None:
    prefix, rest, component = _strip_prefix(key)
    for pattern, part in _SUFFIXES:
        match = pattern.search(rest)
        if match is None:
            continue
        suffix, body, groups = match.group(), rest[: match.start()], match.groupdict()
        if not body or len(body) > 200:
            return None
        found = _find_layer(component, body, prefix.endswith("_"))
        if found is None:
            continue
        layer, index = found
        if suffix in _XLABS_SUFFIXES and layer.namespace != "xlabs" or suffix in _NORM_SUFFIXES and not layer.is_norm:
            continue
        name = groups.get("name")
        return LoRAKey(prefix, body, component, layer, index, groups.get("part") or part, suffix, name)
    return None
