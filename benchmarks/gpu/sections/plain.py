"""A call without conditions, beside diffusers' pipeline and the reference."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import FluxPipeline

from benchmarks.gpu import reference
from benchmarks.gpu.clock import Side
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sizes import Size


PROMPT = "a cat"


def _rows(size: Size) -> Sequence[Row]:
    return [
        Row("loop alone", size.call(), _measure_loop),
        Row("whole call", size.call(), _measure_call),
    ]


def _pipes(kit: Kit) -> tuple[Any, Any]:
    ours = kit.pipeline()
    stock = kit.once("diffusers' pipeline", lambda: ours.to_pipeline(FluxPipeline))
    stock.set_progress_bar_config(disable=True)
    return stock, ours


def _arguments(size: Size) -> dict[str, Any]:
    return {"height": size.pixels, "width": size.pixels, "num_inference_steps": size.steps}


def _measure_loop(kit: Kit) -> dict[str, Any]:
    stock, ours = _pipes(kit)
    shared = {**_arguments(kit.size), "output_type": "latent", "max_sequence_length": kit.size.text_tokens}
    with torch.no_grad():
        embeds, pooled, _ = ours.encode_prompt(PROMPT, None, max_sequence_length=kit.size.text_tokens)
    given = {**shared, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    calls: dict[str, Callable[[], Any]] = {
        "diffusers": lambda: stock(**given),
        "diffusers again": lambda: stock(**given),
        "ours": lambda: ours(**given),
    }
    found, failed = kit.clock.sides(calls, kit.size.repeats)
    return _values(kit, found, failed, ["The reference has no call without its encoders and its autoencoder."])


def _measure_call(kit: Kit) -> dict[str, Any]:
    stock, ours = _pipes(kit)
    shared = _arguments(kit.size)
    given = {**shared, "output_type": "pil", "max_sequence_length": kit.size.text_tokens}
    calls: dict[str, Callable[[], Any]] = {
        "diffusers": lambda: stock(PROMPT, **given),
        "diffusers again": lambda: stock(PROMPT, **given),
        "ours": lambda: ours(PROMPT, **given),
    }
    if reference.why_missing() is None:
        theirs = kit.once("reference", lambda: reference.pipeline(ours.components, kit.device, kit.dtype))
        own = {**shared, "t5_sequence_length": kit.size.text_tokens, "progress_bar_cmd": list}
        calls["reference"] = lambda: theirs(PROMPT, **own)
    found, failed = kit.clock.sides(calls, kit.size.repeats)
    return _values(kit, found, failed, reference.note())


def _values(kit: Kit, found: dict[str, Side], failed: dict[str, str], notes: list[str]) -> dict[str, Any]:
    if "ours" not in found:
        raise RuntimeError(failed["ours"])
    values: dict[str, Any] = {f"{name}_s": side.median for name, side in found.items()}
    for name, beside in (("reference", "ours"), ("diffusers", "ours"), ("diffusers again", "diffusers")):
        if name in found and beside in found:
            pairs = zip(found[name].seconds, found[beside].seconds)
            values[f"{name}_ratio"] = statistics.median(one / other for one, other in pairs)
    values["step_ms"] = 1000 * found["ours"].median / kit.size.steps
    return {**values, "notes": [*notes, *(f"{name} did not run: {why}" for name, why in failed.items())]}


PLAIN = Section(
    "c",
    "plain",
    "A call without conditions",
    "Whole calls of diffusers' `FluxPipeline`, ours and the reference's, from the prompt to the image, and the loop "
    "alone; medians in turns. Ratios are medians of calls next to each other, above 1 where ours is faster; diffusers "
    "beside itself shows the noise. A step is a call divided by its steps.",
    5,
    {
        "reference_s": "reference, s",
        "diffusers_s": "diffusers, s",
        "ours_s": "ours, s",
        "reference_ratio": "reference / ours",
        "diffusers_ratio": "diffusers / ours",
        "diffusers again_ratio": "diffusers / itself",
        "step_ms": "ours, ms per step",
    },
    _rows,
    {"steps": "steps"},
)
