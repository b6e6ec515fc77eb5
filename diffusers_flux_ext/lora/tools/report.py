"""Explaining a LoRA file: what it holds, how strong it is, and which tools can read it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from ..errors import naming_files
from ..files import LoRASource, nonfinite, open_lora
from ..keys import is_extra, parse_lora_key
from ..reading.detection import describe_format
from ..reading.read import LoRAFile, lost_alpha, read
from ..reading.scale import PEFT_HEADER
from ..reading.scope import find_token_scope
from ..updates import StoredLayer, Timed
from .verdict import diffusers_verdict


# Linears of a double block, of a single block, and outside blocks, in FLUX.1-dev.
RELEASED_BLOCKS = {"transformer_blocks": 19, "single_transformer_blocks": 38}
LAYERS_PER_BLOCK = {"transformer_blocks": 14, "single_transformer_blocks": 6}
GLOBAL_LAYERS = 10


@dataclass(frozen=True)
class LoRAReport:
    """What a LoRA file does.

    Attributes:
        format (`str`):
            The name of its format, such as `"kohya"`.
        modules (`dict[str, tuple[int, int]]`):
            Layers that are updated, of those that exist: for `"transformer_blocks"`, `"single_transformer_blocks"` and
            `"others"` of FLUX.1-dev (or of as many blocks as the file names).
        text_encoders (`dict[str, int]`):
            Layers of `"text_encoder"` (CLIP) and `"text_encoder_2"` (T5) that are updated.
        kinds (`dict[str, int]`):
            Layers of the file by kind: `"lora"`, `"loha"`, `"lokr"`, `"diff"`, `"dora"`, `"norm"`, ...
        ranks (`dict[int, int]`):
            Layers of the file by rank.
        alphas (`dict[float, int]`):
            Layers of the file by alpha as stored.
        scales (`dict[float, int]`):
            Layers of the file by the scale that follows, `alpha / rank`.
        norms (`dict[str, float]`):
            Frobenius norm of `delta W` by block.
        dtypes (`dict[str, int]`):
            Tensors by dtype.
        size (`int`):
            Bytes of all tensors.
        num_tensors (`int`):
            Tensors in the file.
        unmapped (`tuple[str, ...]`):
            Unknown keys.
        extras (`tuple[str, ...]`):
            Keys of textual inversions stored in it.
        nonfinite (`tuple[str, ...]`):
            Tensors with NaN or infinite values.
        metadata (`dict[str, str]`):
            The header.
        warnings (`tuple[str, ...]`):
            What a user should know, such as a training alpha that is not in the tensors.
        diffusers (`str`):
            What diffusers' own loader does with it: `"fully"`, `"partly"`, `"wrongly"`, `"not"` or `"fails"`.
        diffusers_reasons (`tuple[str, ...]`):
            Why.
    """

    format: str
    modules: dict[str, tuple[int, int]]
    text_encoders: dict[str, int]
    kinds: dict[str, int]
    ranks: dict[int, int]
    alphas: dict[float, int]
    scales: dict[float, int]
    norms: dict[str, float]
    dtypes: dict[str, int]
    size: int
    num_tensors: int
    unmapped: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    diffusers: str = ""
    diffusers_reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return asdict(self)


def detect_lora_format(source: LoRASource, metadata: Mapping[str, str] | None = None) -> str:
    """Name the format of a LoRA from its keys alone.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A file, a folder with one, or the tensors.
        metadata (`Mapping[str, str]`, *optional*):
            The header, where tensors are given.

    Returns:
        `str`: `"kohya"`, `"diffusers_peft"`, `"xlabs"`, ...; several joined by `" + "` if the file mixes them, and
        `"unknown"` if no key is one of a FLUX.1 LoRA.

    Raises:
        LoRAError: If the file cannot be read.
    """
    with naming_files(source):
        opened = open_lora(source)
    keys = [parse_lora_key(str(key)) for key in opened.tensors if not is_extra(str(key))]
    header = opened.metadata if metadata is None else dict(metadata)
    return describe_format([key for key in keys if key is not None], header)


def inspect_lora(
    source: LoRASource,
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
) -> LoRAReport:
    """Explain a LoRA.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A file, a folder with one, or the tensors.
        metadata, adapter_config:
            As for [`convert_lora`].

    Returns:
        `LoRAReport`: What it holds. Unknown keys are listed, not an error.

    Raises:
        LoRAError: If the file cannot be read, is for another model, or contradicts itself.
    """
    with naming_files(source):
        return _report(read(source, metadata, adapter_config, strict=False))


def _report(adapter: LoRAFile) -> LoRAReport:
    tensors: dict[str, Tensor] = {key: value for key, value in adapter.tensors.items() if isinstance(value, Tensor)}
    updates = [layer.update for layer in adapter.layers.values()]
    verdict = diffusers_verdict(adapter, tensors)
    return LoRAReport(
        format=adapter.format,
        modules=_coverage(adapter),
        text_encoders=dict(Counter(m.partition(".")[0] for m in adapter.modules if not m.startswith("transformer."))),
        kinds=dict(
            Counter("norm" if layer.key.layer.is_norm else layer.update.label for layer in adapter.layers.values())
        ),
        ranks=_count(update.rank for update in updates),
        alphas=_count(None if update.alpha is None else float(update.alpha) for update in updates),
        scales=_count(None if update.rank is None else update.scale for update in updates),
        norms=_norms(adapter),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())),
        size=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        num_tensors=len(tensors),
        unmapped=adapter.unknown,
        extras=tuple(adapter.extras),
        nonfinite=tuple(nonfinite(tensors)),
        metadata=adapter.metadata,
        warnings=tuple(_warnings(adapter)),
        diffusers=verdict.result,
        diffusers_reasons=verdict.reasons,
    )


def _count(values: Any) -> dict[Any, int]:
    return dict(sorted(Counter(value for value in values if value is not None).items()))


def _coverage(adapter: LoRAFile) -> dict[str, tuple[int, int]]:
    norms = {target for layer in adapter.layers.values() if layer.key.layer.is_norm for target in layer.key.targets}
    names = [
        m.removeprefix("transformer.") for m in adapter.modules if m.startswith("transformer.") and m not in norms
    ]
    coverage = {}
    for kind, released in RELEASED_BLOCKS.items():
        indices = [int(name.split(".")[1]) for name in names if name.startswith(f"{kind}.")]
        blocks = max([released, *(index + 1 for index in indices)])
        coverage[kind] = (len(indices), blocks * LAYERS_PER_BLOCK[kind])
    others = len(names) - sum(have for have, _ in coverage.values())
    return {**coverage, "others": (others, GLOBAL_LAYERS)}


def _block(layer: StoredLayer) -> str:
    component, _, name = layer.key.targets[0].partition(".")
    if component != "transformer":
        return component
    return ".".join(name.split(".")[:2]) if "blocks." in name else "others"


def _norms(adapter: LoRAFile) -> dict[str, float]:
    owners = {name for name, _ in adapter.modules.values()}
    squares: dict[str, float] = {}
    for name in adapter.layers:
        if name in owners:
            layer = adapter.layers[name]
            squares[_block(layer)] = squares.get(_block(layer), 0.0) + layer.update.squared_norm()
    order = sorted(squares, key=_block_order)
    return {block: math.sqrt(max(squares[block], 0.0)) for block in order}


def _block_order(block: str) -> tuple[int, int]:
    kinds = ["transformer_blocks", "single_transformer_blocks", "others", "text_encoder", "text_encoder_2"]
    kind, _, index = block.partition(".")
    return kinds.index(kind), int(index or 0)


def _warnings(adapter: LoRAFile) -> list[str]:
    found = []
    header = adapter.metadata
    silent = all(layer.update.alpha is None for layer in adapter.layers.values())
    lost = lost_alpha(adapter.layers, header) if adapter.peft is None else None
    if lost:
        found.append(lost)
    if PEFT_HEADER in header and not silent:
        found.append("The header has PEFT's config besides the alphas of the tensors; the tensors' are used.")
    if any(isinstance(layer.update, Timed) for layer in adapter.layers.values()):
        found.append("This is a timestep LoRA: load it with `load_timestep_lora`.")
    if scope := find_token_scope(adapter.layers.values()):
        found.append(scope)
    return found
