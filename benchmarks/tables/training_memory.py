"""The settings that `train.memory` picks for FLUX.1-dev on cards of several sizes, computed without weights.

python -m benchmarks.tables.training_memory
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel

from benchmarks.methods import write_between_markers
from diffusers_flux_ext.training.frozen import planned_bytes
from diffusers_flux_ext.training.memory import Activations, choose_setting, count_activations, predict, read_budget
from diffusers_flux_ext.training.memory.needs import streamed_bytes
from diffusers_flux_ext.training.memory.plan import GB
from diffusers_flux_ext.training.run.memory import trained_numbers
from diffusers_flux_ext.training.trained import LoRAOptions


PAGE = Path(__file__).parents[2] / "docs" / "training_memory.md"
MARKERS = ("<!-- plans: begin -->\n", "<!-- plans: end -->")
CARDS = (8, 10, 12, 16, 24, 40, 80)
SIDES = (512, 1024)
TEXT = 512
LORA = LoRAOptions("attention+mlp", rank=16)
THROUGHPUT = 60
"""TFLOP per second: what published times of a 24 GB card come to."""

PCIE = 20
"""GB per second from pinned memory to a card, as an assumption: PCIe 4.0 with 16 lanes has 32 at most."""


def table() -> str:
    """Return the table."""
    with init_empty_weights(include_buffers=True), torch.device("meta"):
        transformer: Any = FluxTransformer2DModel(guidance_embeds=True)
    head = "| card | pixels | storage | streamed | checkpointing | predicted peak | weights read per step | "
    head += f"TFLOP per step | seconds at {THROUGHPUT} TFLOP/s | copied per step | seconds at {PCIE} GB/s |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|---|"]
    for side in SIDES:
        tokens = (side // 16) ** 2
        kept = count_activations(transformer.config, torch.bfloat16, tokens, TEXT, LORA)
        lines += [_row(transformer, kept, card, side, tokens) for card in CARDS]
    return "\n".join(lines) + "\n"


def _row(transformer: Any, kept: Activations, card: int, side: int, tokens: int) -> str:
    trained = 16 * trained_numbers(transformer, LORA)
    needs = partial(predict, transformer, kept, dtype=torch.bfloat16, trained=trained, encoders=0)
    start = f"| {card} GB | {side} x {side} |"
    try:
        plan = choose_setting(read_budget(f"{card}GB"), needs, 0, caches=(True,))
    except ValueError:
        return f"{start} nothing fits | | | | | | | | |"
    setting, needed = plan.setting, plan.training
    every, weights = setting.checkpointing, planned_bytes(transformer, setting.storage, torch.bfloat16)
    passes = 2 + (1 / every if every else 0)
    work = passes * forward_flop(transformer, tokens, TEXT) / 1e12
    again = {0: "off", 1: "all blocks"}.get(every, f"one of {every}")
    again += ", inputs in host memory" if setting.offload else ""
    sizes = streamed_bytes(transformer, setting, torch.bfloat16)
    streamed = f"{len(sizes)} blocks, {sum(sizes) / GB:.1f} GB" if sizes else "nothing"
    return (
        f"{start} {setting.storage or 'bfloat16'} | {streamed} | {again} | {needed.peak / GB:.1f} GB | "
        f"{passes * weights / GB:.0f} GB | {work:.0f} | {work / THROUGHPUT:.1f} | {needed.moved / GB:.1f} GB | "
        f"{needed.moved / GB / PCIE:.1f} |"
    )


def forward_flop(transformer: Any, tokens: int, text: int) -> float:
    """Return the floating point operations of a forward pass of one sample."""
    layers = _layers(transformer, tokens, text)
    total = sum(2 * layer.in_features * layer.out_features * rows for layer, rows in layers)
    blocks = len(transformer.transformer_blocks) + len(transformer.single_transformer_blocks)
    return total + 4.0 * (tokens + text) ** 2 * transformer.inner_dim * blocks


def _layers(transformer: Any, tokens: int, text: int) -> Iterator[tuple[torch.nn.Linear, int]]:
    for name, layer in transformer.named_modules():
        if not isinstance(layer, torch.nn.Linear) or "blocks." not in name:
            continue
        if ".norm" in name:
            rows = 1
        elif name.startswith("single"):
            rows = tokens + text
        else:
            rows = text if "add_" in name or "context" in name else tokens
        yield layer, rows


def main() -> None:
    """Write the table into the page."""
    write_between_markers(PAGE, table(), MARKERS)
    sys.stdout.write(f"{PAGE.name} is current\n")


if __name__ == "__main__":
    main()
