"""Assembles one file: the keys with their tensors, and next to them the dense changes that they mean."""

import copy
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.support.lora_files import config
from benchmarks.support.lora_files.cases import CASES, Case, anywhere, cases
from benchmarks.support.lora_files.factors import KINDS, Factors, Recipe, exact
from benchmarks.support.lora_files.formats import TABLE, Format, Spelling
from benchmarks.support.lora_files.layouts import LAYOUTS, TRANSFORMER, Unit, is_projection
from benchmarks.support.lora_files.sizes import Sizes


@dataclass(frozen=True)
class LoRAFile:
    """A generated file and what it means.

    `expected` maps `transformer.<module>`, `text_encoder.<module without text_model.>` and
    `text_encoder_2.<module>`, in diffusers' names, to the dense change of the weight `(out, in)` in float64. Modules
    that the file does not touch are absent; an alpha of zero gives zeros. With `dora` the change is that of the
    factors alone; a magnitude is `(out,)`, or `(1, in)` where the norm runs over the outputs. `extras` are keys that
    are no adapter and must pass through.
    """

    format: str
    case: str
    state_dict: dict[str, Tensor]
    metadata: dict[str, str] | None
    adapter_config: dict[str, Any] | None
    expected: dict[str, Tensor]
    expected_bias: dict[str, Tensor] = field(default_factory=dict)
    expected_norms: dict[str, Tensor] = field(default_factory=dict)
    dora: dict[str, Tensor] = field(default_factory=dict)
    extras: frozenset[str] = frozenset()
    sizes: Sizes = field(default_factory=Sizes)


class Writer:
    """Collects the keys of one file."""

    def __init__(self, row: Format, case: Case, seed: int, dtype: torch.dtype):
        self.row, self.case, self.seed, self.dtype = row, case, seed, dtype
        self.tensors: dict[str, Tensor] = {}
        self.expected: dict[str, Tensor] = {}
        self.bias: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.dora: dict[str, Tensor] = {}
        self.extras: set[str] = set()
        self.ranks: dict[str, dict[str, int]] = {}
        self.alphas: dict[str, dict[str, float]] = {}
        self.index = 0

    def generator(self, name: str) -> torch.Generator:
        """A generator of this file's seed and of a name."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(name.encode()))

    def write(self, unit: Unit, spelling: Spelling) -> None:
        """Adds one layer: its factors, its alpha, and what they mean for every part."""
        factors = KINDS[self.row.kind](unit, self.recipe(unit, spelling))
        for suffix, tensor in factors.tensors.items():
            self.tensors[spelling.key(unit.name, suffix)] = tensor.clone()
        scale = self.scale(unit, spelling, factors)
        self.index += 1
        cut(unit, self.expected, factors.dense * scale)
        if factors.bias is not None:
            cut(unit, self.bias, factors.bias * (scale if factors.bias_scaled else 1.0))
        if factors.magnitude is not None:
            if factors.magnitude.ndim == 1:
                cut(unit, self.dora, factors.magnitude)
            else:
                self.dora.update(dict.fromkeys((name for name, _ in unit.cuts()), factors.magnitude))

    def recipe(self, unit: Unit, spelling: Spelling) -> Recipe:
        """The ingredients of a layer's factors."""
        row, case, module = self.row, self.case, unit.modules[0][0]
        rank = case.rank(self.index, module)
        if case.patterns is not None:
            rank = config.pattern_value(case.patterns[0], module, rank)
        recipe = Recipe(
            rank=rank,
            dtype=self.dtype,
            generator=self.generator(unit.name),
            down=spelling.down,
            up=spelling.up,
            bias=row.bias,
            magnitude=row.magnitude,
            magnitude_axis=row.magnitude_axis,
            blocks=case.blocks,
            factor=row.factor,
            decomposed=row.decomposed,
        )
        if case.shared_down and (is_projection(module) or module.endswith("proj_mlp")):
            stream = "text" if "add_" in module else "image"
            shared = replace(
                recipe, generator=self.generator(f"{module.rpartition('.attn.')[0] or module[:-9]}{stream}")
            )
            return replace(recipe, shared_down=shared.noise(rank, unit.columns))
        return recipe

    def scale(self, unit: Unit, spelling: Spelling, factors: Factors) -> float:
        """Stores or notes the layer's alpha, and returns what it multiplies the factors by."""
        row, case, module = self.row, self.case, unit.modules[0][0]
        ratio = case.ratio(self.index, module)
        alpha = factors.rank if ratio is None else ratio * factors.rank
        if case.patterns is not None:
            alpha = config.pattern_value(case.patterns[1], module, 8)
        if row.alpha == "never" or row.kind == "full":
            return 1.0
        if row.alpha.startswith("stored") and ratio is not None:
            stored = torch.full(case.alpha_shape, alpha, dtype=torch.float64).to(case.alpha_dtype)
            self.tensors[spelling.key(unit.name, "alpha")] = stored
            alpha = stored.double().sum().item()
        if row.alpha != "stored":
            for name, _ in unit.modules:
                self.ranks.setdefault(unit.component, {})[name] = factors.rank
                self.alphas.setdefault(unit.component, {})[name] = alpha
        return config.config_scale(case, factors.rank, alpha) if factors.scaled else 1.0

    def write_norms(self) -> None:
        """Adds the query and key norms that BFL's control files overwrite."""
        sizes = self.case.sizes
        names = {
            f"double_blocks.{index}.{stream}_attn.norm": f"transformer_blocks.{index}.attn.norm_{added}"
            for index in range(sizes.double)
            for stream, added in (("img", ""), ("txt", "added_"))
        }
        single = {
            f"single_blocks.{index}.norm": f"single_transformer_blocks.{index}.attn.norm_"
            for index in range(sizes.single)
        }
        for theirs, ours in {**names, **single}.items():
            for role in ("query", "key"):
                scale = torch.randn(sizes.head, generator=self.generator(theirs + role)).to(self.dtype)
                self.tensors[f"{theirs}.{role}_norm.scale"] = scale
                self.norms[f"{TRANSFORMER}.{ours}{role[0]}"] = exact(scale)

    def write_extras(self) -> None:
        """Adds embeddings, or the norms of a text encoder."""
        sizes, kind = self.case.sizes, self.case.extras
        widths = {"clip_l": sizes.clip, "t5": sizes.t5}
        if kind == "clip norms":
            self.write_clip_norms()
        elif kind == "bundle" and self.row.bundle == "flat":
            self.add_extras({name: (2, width) for name, width in widths.items()})
        elif kind == "bundle":
            outputs = {f"{name}_out": width for name, width in widths.items()}
            self.add_extras({f"bundle_emb.token.{name}": (2, width) for name, width in {**widths, **outputs}.items()})
        elif kind == "bundle old":
            self.add_extras({"bundle_emb.token.string_to_param.*": (2, sizes.clip)})

    def add_extras(self, shapes: dict[str, tuple[int, int]]) -> None:
        """Adds tensors that are no adapter."""
        for name, shape in shapes.items():
            self.tensors[name] = torch.randn(shape, generator=self.generator(name)).to(self.dtype)
            self.extras.add(name)

    def write_clip_norms(self) -> None:
        """Adds the changes of CLIP's norms and positions, which have no factors."""
        sizes, prefix = self.case.sizes, self.row.encoders["clip"][1].prefix
        norms = [f"encoder.layers.{index}.layer_norm{part}" for index in range(sizes.layers) for part in (1, 2)]
        changes = [(name, suffix, (sizes.clip,)) for name in norms for suffix in ("diff", "diff_b")]
        for name, suffix, shape in (*changes, ("embeddings.position_embedding", "diff", (77, sizes.clip))):
            change = torch.randn(shape, generator=self.generator(name + suffix)).to(self.dtype)
            self.tensors[f"{prefix}text_model.{name}.{suffix}"] = change
            target = self.bias if suffix == "diff_b" else self.expected
            target[f"text_encoder.{name}"] = exact(change)

    def configs(self) -> dict[str, dict[str, Any]]:
        """The PEFT configuration of every component."""
        return {part: config.peft_config(self.case, self.ranks[part], self.alphas[part]) for part in self.ranks}


def cut(unit: Unit, table: dict[str, Tensor], rows: Tensor) -> None:
    """Puts the rows of a layer under the parts' names, in diffusers' order of rows."""
    for name, part in unit.cuts():
        values = rows[part]
        table[name] = values.roll(values.shape[0] // 2, dims=0) if unit.swapped else values.clone()


def units_of(writer: Writer) -> Iterator[tuple[Unit, Spelling]]:
    """The layers of a file in order, each with its spelling."""
    row, case = writer.row, writer.case
    keep = case.keep if row.partial else anywhere
    twin = row.twin if case.twin == "disjoint" else None
    if case.transformer:
        for unit in LAYOUTS[row.layout](case.sizes):
            if all(keep(module) for module, _ in unit.modules) and (twin is None or "single" not in unit.name):
                yield unit, row.spelling
    if twin is not None:
        for unit in LAYOUTS[twin[0]](case.sizes):
            if all(keep(module) for module, _ in unit.modules) and "single" in unit.name:
                yield unit, twin[1]
    for name in case.encoders or (("clip",) if row.always_clip else ()):
        layout, spelling = row.encoders[name]
        yield from ((unit, spelling) for unit in LAYOUTS[layout](case.sizes))


def repeat_in_twin(writer: Writer) -> None:
    """Writes every layer of the transformer a second time, in the twin's names, with the same change."""
    row, (layout, spelling) = writer.row, writer.row.twin
    own = {unit.modules: unit for unit in LAYOUTS[row.layout](writer.case.sizes)}
    for unit in LAYOUTS[layout](writer.case.sizes):
        parts = [own[unit.modules]] if unit.modules in own else [own[part,] for part in unit.modules]
        downs = [writer.tensors.get(row.spelling.key(part.name, row.spelling.down)) for part in parts]
        if downs[0] is None:
            continue
        ups = torch.cat([writer.tensors[row.spelling.key(part.name, row.spelling.up)] for part in parts])
        swap = unit.swapped and not parts[0].swapped
        writer.tensors[spelling.key(unit.name, spelling.down)] = downs[0].clone()
        writer.tensors[spelling.key(unit.name, spelling.up)] = ups.roll(unit.rows // 2, 0) if swap else ups
        writer.tensors[spelling.key(unit.name, "alpha")] = torch.tensor(float(downs[0].shape[0]))


def shuffle(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The same tensors in another order."""
    names = list(tensors)
    random.Random(seed).shuffle(names)
    return {name: tensors[name] for name in names}


def metadata_of(writer: Writer) -> tuple[dict[str, str] | None, dict[str, Any] | None]:
    """The safetensors header and the sidecar."""
    alpha, metadata, adapter_config = writer.row.alpha, dict(writer.row.header or {}), None
    if alpha in ("header", "bare header", "stored and header"):
        metadata.update(config.header(writer.configs(), prefixed=alpha != "bare header"))
    elif alpha == "sidecar":
        adapter_config = config.sidecar(writer.configs()[TRANSFORMER])
    return metadata or None, adapter_config


def make(format: str, case: str = "default", seed: int = 0, dtype: torch.dtype = torch.float32) -> LoRAFile:
    """One file of a format; a case or a format that names its own storage overrules `dtype`."""
    if case != "default":
        return _build(format, case, seed, dtype)
    kept = _default(format, seed, dtype)
    tables = ("state_dict", "expected", "expected_bias", "expected_norms", "dora")
    copied = {name: {key: value.clone() for key, value in getattr(kept, name).items()} for name in tables}
    return replace(
        kept, metadata=copy.copy(kept.metadata), adapter_config=copy.deepcopy(kept.adapter_config), **copied
    )


# Each default file is read by many tests.
@lru_cache(maxsize=128)
def _default(format: str, seed: int, dtype: torch.dtype) -> LoRAFile:
    return _build(format, "default", seed, dtype)


def _build(format: str, case: str, seed: int, dtype: torch.dtype) -> LoRAFile:
    if case not in cases(format):
        raise ValueError(f"{format} has no case {case!r}; it has {', '.join(cases(format))}")
    row, options = TABLE[format], CASES[case]
    spelling = replace(row.spelling, **options.spelling)
    row = replace(row, **{**options.row, "spelling": spelling})
    own = getattr(torch, row.dtype) if dtype == torch.float32 else dtype
    writer = Writer(row, options, seed, options.dtype or own)
    for unit, spelled in units_of(writer):
        writer.write(unit, spelled)
    if options.twin == "identical":
        repeat_in_twin(writer)
    if row.norms:
        writer.write_norms()
    writer.write_extras()
    metadata, adapter_config = metadata_of(writer)
    return LoRAFile(
        format=format,
        case=case,
        state_dict=shuffle(writer.tensors, seed) if options.shuffled else writer.tensors,
        metadata=metadata,
        adapter_config=adapter_config,
        expected=writer.expected,
        expected_bias=writer.bias,
        expected_norms=writer.norms,
        dora=writer.dora,
        extras=frozenset(writer.extras),
        sizes=options.sizes,
    )


def all_files(seed: int = 0) -> Iterator[LoRAFile]:
    """Every case of every format."""
    for format in TABLE:
        for case in cases(format):
            yield _build(format, case, seed, torch.float32)
