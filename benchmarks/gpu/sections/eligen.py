"""One step with entities, beside the reference and a dense mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from benchmarks.entity_step import EntityStep, Side, make_entity_step, own_sides, reference_side
from benchmarks.gpu import reference
from benchmarks.gpu.clock import reason
from benchmarks.gpu.kit import Kit, Missing
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sizes import Size


NATIVE = "native"
BACKENDS = ("_native_cudnn", "_native_efficient", "_native_flash", "flex", "flash", "_flash_3", "sage", "xformers")
ENTITIES = (3, 6, 0, 10)


def _rows(size: Size) -> Sequence[Row]:
    cases = [(NATIVE, False, entities) for entities in ENTITIES]
    cases += [(NATIVE, True, entities) for entities in ENTITIES]
    cases += [(backend, False, entities) for backend in BACKENDS for entities in ENTITIES[:2]]
    if size.is_toy:
        cases = [(NATIVE, False, 3), (NATIVE, True, 3), ("_native_flash", False, 3)]
    return [
        Row(
            f"{entities} entities",
            {"backend": backend, "blocks": "compiled" if compiled else "eager", **size.step()},
            partial(_measure, entities=entities, backend=backend, compiled=compiled),
        )
        for backend, compiled, entities in cases
    ]


@contextmanager
def attending(transformer: Any, backend: str) -> Iterator[None]:
    """Run a transformer with an attention backend; raise [`Missing`] if it cannot be had."""
    try:
        transformer.set_attention_backend(backend)
    except Exception as error:  # Each backend has its own way to say what it lacks.
        raise Missing(f"The attention backend {backend!r} cannot be had: {reason(error)}") from error
    try:
        yield
    finally:
        transformer.reset_attention_backend()
        transformer.set_attention_backend(NATIVE)


@contextmanager
def compiled_blocks(transformer: Any, compiled: bool, backend: str) -> Iterator[None]:
    """Run a transformer with compiled blocks, and with ordinary ones afterwards."""
    if not compiled:
        yield
        return
    torch._dynamo.reset()
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch._dynamo.reset()


def _measure(kit: Kit, entities: int, backend: str, compiled: bool) -> dict[str, Any]:
    transformer, size = kit.shared_transformer(), kit.size
    step = make_entity_step(transformer, size.side, size.text_tokens, entities)
    sides = own_sides(transformer, step)
    notes = []
    if backend == NATIVE and not compiled:
        sides |= _reference(kit, step)
        notes = reference.note()
    # Tracing without a compiler is enough for a toy.
    compiler = "eager" if size.is_toy else "inductor"
    with torch.no_grad(), attending(transformer, backend), compiled_blocks(transformer, compiled, compiler):
        found, failed = kit.clock.sides(sides, size.repeats, warm_up=2)
    if "ours" not in found:
        raise RuntimeError(failed["ours"])
    values: dict[str, Any] = {f"{name}_ms": 1000 * side.median for name, side in found.items()}
    values |= {f"{name}_gib": side.peak_gib for name, side in found.items()}
    for name in set(found) - {"ours"}:
        values[f"{name}_ratio"] = found[name].median / found["ours"].median
        values[f"{name}_difference"] = _difference(found[name].result, found["ours"].result, step)
    return {**values, "notes": [*notes, *(f"{name} did not run: {why}" for name, why in failed.items())]}


def _reference(kit: Kit, step: EntityStep) -> dict[str, Side]:
    if reference.why_missing():
        return {}
    dit = kit.once("reference's transformer", lambda: reference.shared_dit(kit.shared_transformer()))
    return {"reference": reference_side(dit, step)}


def _difference(other: torch.Tensor, ours: torch.Tensor, step: EntityStep) -> float:
    """Return the root mean square difference of velocities, in units of ours."""
    if other.ndim == 4:
        side = step.latents.shape[-1] // 2
        other = other.view(1, 16, side, 2, side, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, side * side, 64)
    return relative_difference(other, ours)


def relative_difference(other: torch.Tensor, ours: torch.Tensor) -> float:
    """Return the root mean square difference of two tensors, in units of the second one."""
    return ((other.float() - ours.float()).square().mean() / ours.float().square().mean()).sqrt().item()


ELIGEN = Section(
    "b",
    "eligen",
    "EliGen: one step",
    "One forward of the transformer with entities of as many text tokens as the prompt: the reference's model "
    "function, the stock transformer with a dense mask, and ours; medians in turns. The two ratios say how many times "
    "as fast ours is, the difference is the root mean square one of velocities, relative to ours. The reference runs "
    "eagerly with its own choice of attention.",
    8,
    {
        "reference_ms": "reference, ms",
        "dense mask_ms": "dense mask, ms",
        "ours_ms": "ours, ms",
        "reference_ratio": "vs reference",
        "dense mask_ratio": "vs dense mask",
        "reference_difference": "difference to reference",
        "dense mask_difference": "difference to dense mask",
        "dense mask_gib": "dense mask, peak GiB",
        "ours_gib": "ours, peak GiB",
    },
    _rows,
    {"backend": "attention", "blocks": "blocks"},
)
