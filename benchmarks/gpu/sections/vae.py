"""The autoencoder in tiles and whole: time and peak."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from benchmarks.gpu.kit import Kit
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sizes import Size
from diffusers_flux_ext import AutoencoderKLFlux


SIDES = (1024, 2048, 4096)
TILE = 512


def _rows(size: Size) -> Sequence[Row]:
    sides, tile = ((64,), 32) if size.is_toy else (SIDES, TILE)
    return [
        Row(
            f"{operation} {side} x {side}",
            {"tile": tile, "dtype": size.dtype},
            partial(_measure, operation=operation, side=side, tile=tile),
        )
        for side in sides
        for operation in ("decode", "encode")
    ]


def _measure(kit: Kit, operation: str, side: int, tile: int) -> dict[str, Any]:
    ours = kit.once("vae", lambda: kit.filled(lambda: AutoencoderKLFlux(**kit.size.vae)))
    stock = AutoencoderKL.from_config(ours.config)
    # The same weights: only the tiling differs.
    stock.encoder, stock.decoder = ours.encoder, ours.decoder
    stock.tile_sample_min_size, stock.tile_latent_min_size = tile, tile // 8
    shape = (1, 3, side, side) if operation == "encode" else (1, 16, side // 8, side // 8)
    sample = torch.randn(shape, device=kit.device, dtype=kit.dtype)

    def run(vae: Any, tiled: bool, *arguments: int) -> Any:
        vae.enable_tiling(*arguments) if tiled else vae.disable_tiling()
        return getattr(vae, operation)(sample)

    calls = {
        "untiled": lambda: run(ours, False),
        "diffusers": lambda: run(stock, True),
        "ours": lambda: run(ours, True, tile),
    }
    with torch.no_grad():
        found, failed = kit.clock.sides(calls, kit.size.repeats)
    ours.disable_tiling()
    if "ours" not in found:
        raise RuntimeError(failed["ours"])
    values: dict[str, Any] = {f"{name}_ms": 1000 * each.median for name, each in found.items()}
    values |= {f"{name}_gib": each.peak_gib for name, each in found.items()}
    return {**values, "notes": [f"{name} did not run: {why}" for name, why in failed.items()]}


VAE = Section(
    "g",
    "vae",
    "VAE tiling",
    "The whole autoencoder's call untiled, in diffusers' tiles and in ours, of the same size; medians in turns.",
    2,
    {f"{name}_{unit}": f"{name}, {head}" for unit, head in (("ms", "ms"), ("gib", "peak GiB"))
     for name in ("untiled", "diffusers", "ours")},
    _rows,
    {"tile": "tile"},
)  # fmt: skip
