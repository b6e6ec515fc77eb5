"""Weights in fewer bits: time, memory and error of one step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.entity_step import make_entity_step, own_sides
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.packing import KINDS
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sections.eligen import relative_difference
from benchmarks.gpu.sizes import Size


ENTITIES = (0, 3)
TOY_KINDS = ("fp8, layerwise casting", "GGUF Q8_0")


def _rows(size: Size) -> Sequence[Row]:
    return [
        Row(kind, {"entities": entities, **size.step()}, partial(_measure, kind=kind, entities=entities))
        for entities in ENTITIES
        for kind in (TOY_KINDS if size.is_toy else KINDS)
        if not (size.is_toy and entities)
    ]


def _measure(kit: Kit, kind: str, entities: int) -> dict[str, Any]:
    kit.forget()
    empty = kit.clock.allocated_gib() or 0.0
    transformer, size = kit.transformer(), kit.size
    step = make_entity_step(transformer, size.side, size.text_tokens, entities)
    call = own_sides(transformer, step)["ours"]
    with torch.no_grad():
        plain, failed = kit.clock.sides({"plain": call}, size.repeats)
        if failed:
            raise RuntimeError(failed["plain"])
        expected = plain["plain"].result
        KINDS[kind](transformer, kit.dtype)
        kit.clock.empty()
        weights = kit.clock.allocated_gib()
        packed, failed = kit.clock.sides({"packed": call}, size.repeats)
    if failed:
        raise RuntimeError(failed["packed"])
    return {
        "plain_ms": 1000 * plain["plain"].median,
        "packed_ms": 1000 * packed["packed"].median,
        "ratio": packed["packed"].median / plain["plain"].median,
        "weights_gib": None if weights is None else weights - empty,
        "plain_gib": plain["plain"].peak_gib,
        "packed_gib": packed["packed"].peak_gib,
        "difference": relative_difference(packed["packed"].result, expected),
    }


STORAGE = Section(
    "e",
    "storage",
    "Weights in fewer bits",
    "One step before and after the transformer's weights were packed, as they are on the card. The difference is the "
    "root mean square one of the velocity, relative to that of the unpacked weights, which are random.",
    6,
    {
        "plain_ms": "unpacked, ms",
        "packed_ms": "packed, ms",
        "ratio": "packed / unpacked",
        "weights_gib": "weights, GiB",
        "plain_gib": "unpacked, peak GiB",
        "packed_gib": "packed, peak GiB",
        "difference": "difference",
    },
    _rows,
    {"entities": "entities"},
)
