"""Caches: how much faster a call is, and how far its result moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.cache_table import enabled
from benchmarks.caches import make_caches
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sections.eligen import relative_difference
from benchmarks.gpu.sizes import Size


STEPS = 28
TOY = ("TeaCache 0.25", "TaylorSeer, every 3rd")


def _steps(size: Size) -> int:
    return 4 if size.is_toy else STEPS


def _rows(size: Size) -> Sequence[Row]:
    # The configs ask the pipeline for its timestep only when they are used.
    names = TOY if size.is_toy else list(make_caches(None, STEPS))
    settings = {**size.call(), "steps": _steps(size)}
    return [Row(name, settings, partial(_measure, name=name)) for name in names]


def _measure(kit: Kit, name: str) -> dict[str, Any]:
    pipe, size = kit.pipeline(), kit.size
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt("a cat", None, max_sequence_length=size.text_tokens)
    runs: list[int] = []
    layer = pipe.transformer.single_transformer_blocks[-1].attn.to_q
    handle = layer.register_forward_pre_hook(lambda module, inputs: runs.append(1))

    def draw() -> torch.Tensor:
        runs.clear()
        return pipe(
            prompt_embeds=embeds,
            pooled_prompt_embeds=pooled,
            height=size.pixels,
            width=size.pixels,
            num_inference_steps=_steps(size),
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images

    try:
        exact, plain, peak = _fastest(kit, draw)
        with enabled(pipe, make_caches(pipe, _steps(size))[name]):
            cached, fast, cached_peak = _fastest(kit, draw)
            ran = len(runs)
    finally:
        handle.remove()
    return {
        "skipped": _steps(size) - ran,
        "plain_s": plain,
        "cached_s": fast,
        "ratio": plain / fast,
        "extra_gib": None if peak is None or cached_peak is None else cached_peak - peak,
        "difference": relative_difference(cached, exact),
    }


def _fastest(kit: Kit, draw: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float, float | None]:
    """Return the result, the seconds and the peak of the faster of two calls, of which the first warms up."""
    timed = [kit.clock.peak(draw) for _ in range(2)]
    seconds, peak, result = min(timed, key=lambda each: each[0])
    return result, seconds, peak


CACHES = Section(
    "f",
    "caches",
    "Caches",
    "The loop of a call with and without a cache, from the same noise; the faster of two calls. The difference is the "
    "root mean square one of the latents, relative to the call without a cache. Weights are random, so how many steps "
    "a threshold skips and what that changes says nothing about trained weights: [caches.md](caches.md) has errors of "
    "a trained model.",
    4,
    {
        "skipped": "skipped",
        "plain_s": "without, s",
        "cached_s": "with, s",
        "ratio": "times as fast",
        "extra_gib": "more memory, GiB",
        "difference": "difference",
    },
    _rows,
    {"steps": "steps"},
)
