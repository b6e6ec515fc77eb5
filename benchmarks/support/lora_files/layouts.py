"""How each layout cuts the model into stored units: their names, shapes, and the diffusers modules in their rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.support.lora_files.sizes import Sizes, clip_modules, t5_modules, transformer_modules


TRANSFORMER, CLIP, T5 = "transformer", "text_encoder", "text_encoder_2"


@dataclass(frozen=True)
class Unit:
    """A stored layer of shape `(rows, columns)`, whose rows are those of `modules` one after the other."""

    name: str
    component: str
    modules: tuple[tuple[str, int], ...]
    columns: int
    swapped: bool = False

    @property
    def rows(self) -> int:
        """Output features of all parts."""
        return sum(rows for _, rows in self.modules)

    def cuts(self) -> Iterator[tuple[str, slice]]:
        """The expected-table's key of every part with its rows."""
        start = 0
        for module, rows in self.modules:
            yield f"{self.component}.{module}", slice(start, start + rows)
            start += rows


Rows = tuple[str, tuple[str, ...]]

DOUBLE_BFL: tuple[Rows, ...] = (
    ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    ("img_attn.proj", ("attn.to_out.0",)),
    ("txt_attn.proj", ("attn.to_add_out",)),
    ("img_mlp.0", ("ff.net.0.proj",)),
    ("img_mlp.2", ("ff.net.2",)),
    ("txt_mlp.0", ("ff_context.net.0.proj",)),
    ("txt_mlp.2", ("ff_context.net.2",)),
    ("img_mod.lin", ("norm1.linear",)),
    ("txt_mod.lin", ("norm1_context.linear",)),
)
SINGLE_BFL: tuple[Rows, ...] = (
    ("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    ("linear2", ("proj_out",)),
    ("modulation.lin", ("norm.linear",)),
)
GLOBAL_BFL = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
DIFFSYNTH = {
    "img_attn.qkv": "attn.a_to_qkv",
    "txt_attn.qkv": "attn.b_to_qkv",
    "img_attn.proj": "attn.a_to_out",
    "txt_attn.proj": "attn.b_to_out",
    "img_mlp.0": "ff_a.0",
    "img_mlp.2": "ff_a.2",
    "txt_mlp.0": "ff_b.0",
    "txt_mlp.2": "ff_b.2",
    "img_mod.lin": "norm1_a.linear",
    "txt_mod.lin": "norm1_b.linear",
    "linear1": "to_qkv_mlp",
    "linear2": "proj_out",
    "modulation.lin": "norm.linear",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_embedder.timestep_embedder.0",
    "time_in.out_layer": "time_embedder.timestep_embedder.2",
    "guidance_in.in_layer": "guidance_embedder.timestep_embedder.0",
    "guidance_in.out_layer": "guidance_embedder.timestep_embedder.2",
    "vector_in.in_layer": "pooled_text_embedder.0",
    "vector_in.out_layer": "pooled_text_embedder.2",
    "final_layer.adaLN_modulation.1": "final_norm_out.linear",
    "final_layer.linear": "final_proj_out",
}
DIFFSYNTH_PARTS = {
    "attn.to_q": "a_to_q",
    "attn.to_k": "a_to_k",
    "attn.to_v": "a_to_v",
    "attn.add_q_proj": "b_to_q",
    "attn.add_k_proj": "b_to_k",
    "attn.add_v_proj": "b_to_v",
    "proj_mlp": "proj_in_besides_attn",
}
SWAPPED = "norm_out.linear"


def _unit(sizes: Sizes, name: str, modules: list[str]) -> Unit:
    shapes = transformer_modules(sizes)
    rows = tuple((module, shapes[module][0]) for module in modules)
    return Unit(name, TRANSFORMER, rows, shapes[modules[0]][1])


def diffusers_units(sizes: Sizes) -> list[Unit]:
    """One unit a module."""
    return [_unit(sizes, name, [name]) for name in transformer_modules(sizes)]


def _fused(
    sizes: Sizes,
    double: Callable[[str], str],
    single: Callable[[str], str],
    outer: Callable[[str], str],
    blocks: str = "double_blocks",
) -> list[Unit]:
    units = []
    for table, rename, theirs, ours, depth in (
        (DOUBLE_BFL, double, blocks, "transformer_blocks", sizes.double),
        (SINGLE_BFL, single, "single_blocks", "single_transformer_blocks", sizes.single),
    ):
        for index in range(depth):
            for name, parts in table:
                modules = [f"{ours}.{index}.{part}" for part in parts]
                units.append(_unit(sizes, f"{theirs}.{index}.{rename(name)}", modules))
    for name, module in GLOBAL_BFL.items():
        units.append(replace(_unit(sizes, outer(name), [module]), swapped=module == SWAPPED))
    return units


def _same(name: str) -> str:
    return name


def bfl_units(sizes: Sizes) -> list[Unit]:
    """Black Forest Labs' own names."""
    return _fused(sizes, _same, _same, _same)


def diffsynth_units(sizes: Sizes) -> list[Unit]:
    """The names of DiffSynth's DiT."""
    return _fused(sizes, DIFFSYNTH.__getitem__, DIFFSYNTH.__getitem__, DIFFSYNTH.__getitem__, "blocks")


def sept2024_units(sizes: Sizes) -> list[Unit]:
    """DiffSynth's names before September 2024, when the single blocks' first layer was called `linear`."""
    names = {**DIFFSYNTH, "linear1": "linear"}
    return _fused(sizes, names.__getitem__, names.__getitem__, names.__getitem__, "blocks")


def _split(unit: Unit, name: Callable[[int, str], str]) -> list[Unit]:
    """A unit for every part of a fused one."""
    if len(unit.modules) == 1:
        return [unit]
    return [
        Unit(name(index, module), unit.component, ((module, rows),), unit.columns)
        for index, (module, rows) in enumerate(unit.modules)
    ]


def bfl_split_units(sizes: Sizes) -> list[Unit]:
    """BFL's names with a number for every part: `img_attn.qkv.0`."""
    return [
        part for unit in bfl_units(sizes) for part in _split(unit, lambda index, _, unit=unit: f"{unit.name}.{index}")
    ]


def diffsynth_split_units(sizes: Sizes) -> list[Unit]:
    """DiffSynth's names with the parts apart: `blocks.0.attn.a_to_q`, `single_blocks.0.a_to_q`."""

    def rename(unit: Unit, module: str) -> str:
        tail = DIFFSYNTH_PARTS[module.split(".", 2)[2]]
        return f"{unit.name.rpartition('.')[0]}.{tail}"

    return [
        part
        for unit in diffsynth_units(sizes)
        for part in _split(unit, lambda _, module, unit=unit: rename(unit, module))
    ]


def fused_qkv_units(sizes: Sizes) -> list[Unit]:
    """Diffusers' names after `fuse_qkv_projections`: `attn.to_qkv` and `attn.to_added_qkv`."""
    units = [unit for unit in diffusers_units(sizes) if not is_projection(unit.name)]
    for kind, depth in (("transformer_blocks", sizes.double), ("single_transformer_blocks", sizes.single)):
        for index in range(depth):
            attention = f"{kind}.{index}.attn"
            units.append(_unit(sizes, f"{attention}.to_qkv", [f"{attention}.to_{part}" for part in "qkv"]))
            if kind == "transformer_blocks":
                added = [f"{attention}.add_{part}_proj" for part in "qkv"]
                units.append(_unit(sizes, f"{attention}.to_added_qkv", added))
    return units


def xlabs_units(sizes: Sizes) -> list[Unit]:
    """XLabs' processors: attention only, 1 is the image stream and 2 the text stream."""
    names = {
        "img_attn.qkv": "qkv_lora1",
        "img_attn.proj": "proj_lora1",
        "txt_attn.qkv": "qkv_lora2",
        "txt_attn.proj": "proj_lora2",
    }
    units = []
    for unit in bfl_units(sizes):
        block, _, rest = unit.name.partition(".")
        index, _, layer = rest.partition(".")
        if layer in names:
            units.append(Unit(f"{block}.{index}.processor.{names[layer]}", TRANSFORMER, unit.modules, unit.columns))
        elif layer == "linear1":
            units.append(Unit(f"{block}.{index}.processor.qkv_lora", TRANSFORMER, unit.modules[:3], unit.columns))
        elif layer == "linear2":
            units.append(Unit(f"{block}.{index}.processor.proj_lora", TRANSFORMER, unit.modules, unit.columns))
    return units


def fal_units(sizes: Sizes) -> list[Unit]:
    """BFL's names of all blocks and of the last Linear."""
    return [unit for unit in bfl_units(sizes) if "blocks." in unit.name or unit.name == "final_layer.linear"]


def control_units(sizes: Sizes) -> list[Unit]:
    """BFL's names with an image embedder of twice the channels."""
    return [replace(unit, columns=2 * unit.columns) if unit.name == "img_in" else unit for unit in bfl_units(sizes)]


def is_projection(name: str) -> bool:
    """Whether a diffusers module is one of query, key and value."""
    return name.rpartition(".attn.")[2] in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


def _plain(component: str, shapes: dict[str, tuple[int, int]], name: Callable[[str], str]) -> list[Unit]:
    return [Unit(name(key), component, ((key, rows),), columns) for key, (rows, columns) in shapes.items()]


def clip_units(sizes: Sizes) -> list[Unit]:
    """CLIP with the `text_model.` level of transformers before 5."""
    return _plain(CLIP, clip_modules(sizes), lambda name: f"text_model.{name}")


def clip_flat_units(sizes: Sizes) -> list[Unit]:
    """CLIP without the `text_model.` level."""
    return _plain(CLIP, clip_modules(sizes), _same)


def clip_old_units(sizes: Sizes) -> list[Unit]:
    """CLIP as the first trainers wrote it: `self_attn.to_q_lora.down`, `mlp.fc1.lora_linear_layer.down`."""

    def rename(name: str) -> str:
        stem, _, last = name.rpartition(".")
        if last.endswith("_proj"):
            return f"text_model.{stem}.to_{last[: -len('_proj')]}_lora"
        return f"text_model.{name}.lora_linear_layer"

    return _plain(CLIP, clip_modules(sizes), rename)


def t5_units(sizes: Sizes) -> list[Unit]:
    """T5 in its own names."""
    return _plain(T5, t5_modules(sizes), _same)


LAYOUTS: dict[str, Callable[[Sizes], list[Unit]]] = {
    "diffusers": diffusers_units,
    "fused_qkv": fused_qkv_units,
    "bfl": bfl_units,
    "bfl_split": bfl_split_units,
    "diffsynth": diffsynth_units,
    "diffsynth_split": diffsynth_split_units,
    "sept2024": sept2024_units,
    "xlabs": xlabs_units,
    "fal": fal_units,
    "control": control_units,
    "clip": clip_units,
    "clip_flat": clip_flat_units,
    "clip_old": clip_old_units,
    "t5": t5_units,
}
