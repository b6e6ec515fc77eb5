"""The step of every method, at the released sizes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from benchmarks import method_steps
from benchmarks.gpu.kit import Kit, fill
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sizes import Size
from benchmarks.method_steps import StepSizes, make_step
from diffusers_flux_ext.methods.catalog import on_meta


TOY = ("entities", "redux", "fill")


def _rows(size: Size) -> Sequence[Row]:
    names = TOY if size.is_toy else list(method_steps.METHODS)
    return [Row(name, size.step(), partial(_measure, name=name)) for name in names]


def _sizes(size: Size) -> StepSizes:
    if size.is_toy:
        return StepSizes(**{**vars(method_steps.QUARTER), "side": size.side, "text": size.text_tokens})
    return method_steps.RELEASED


def _measure(kit: Kit, name: str) -> dict[str, Any]:
    method, pipe, sizes = method_steps.METHODS[name], kit.pipeline(), _sizes(kit.size)
    modules = {
        key: made.tiny().to(kit.device) if kit.size.is_toy else kit.filled(made.released)
        for key, made in method.modules.items()
    }
    own, kept = widened(kit, pipe.transformer, method.channels), pipe.transformer
    with torch.no_grad():
        without, _ = make_step(pipe, [], sizes)
        pipe.transformer = own
        try:
            conditions = method.build(modules, sizes)
            with_it, added = make_step(pipe, conditions, sizes, method.hides_padding)
            pipe.transformer = kept
            found, failed = kit.clock.sides({"without": without, "with": with_it}, kit.size.repeats)
        finally:
            pipe.transformer = kept
    if failed:
        raise RuntimeError("; ".join(failed.values()))
    weights = sum(weight.nbytes for module in modules.values() for weight in module.parameters())
    return {
        "tokens": added,
        "weights_gib": weights / 2**30,
        "without_ms": 1000 * found["without"].median,
        "with_ms": 1000 * found["with"].median,
        "ratio": found["with"].median / found["without"].median,
        "without_gib": found["without"].peak_gib,
        "with_gib": found["with"].peak_gib,
    }


def widened(kit: Kit, transformer: Any, channels: int) -> Any:
    """Return a transformer that takes further channels and shares everything else with the given one."""
    if not channels:
        return transformer
    config = {**transformer.config, "in_channels": transformer.config.in_channels + channels}
    config["out_channels"] = transformer.config.in_channels
    wide: Any = on_meta(lambda: FluxTransformer2DModel.from_config(config))
    for name, child in transformer.named_children():
        if name != "x_embedder":
            setattr(wide, name, child)
    wide.x_embedder = fill(wide.x_embedder.to(kit.dtype), kit.device)
    return wide.eval()


METHODS = Section(
    "i",
    "methods",
    "Every method: one step",
    "One step with a method's conditions beside the same step without them, medians in turns, with modules of the "
    "released sizes and random weights. Encoders and the autoencoder run before the loop and do not count.",
    6,
    {
        "tokens": "tokens added",
        "weights_gib": "weights, GiB",
        "without_ms": "without, ms",
        "with_ms": "with, ms",
        "ratio": "time ratio",
        "without_gib": "without, peak GiB",
        "with_gib": "with, peak GiB",
    },
    _rows,
)
