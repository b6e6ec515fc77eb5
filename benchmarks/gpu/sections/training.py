"""One update of a LoRA: time, peak, and the share of what the card multiplies at best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.kit import Kit, Missing
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sizes import Size
from diffusers_flux_ext.training import FluxTraining, TrainingBatch
from diffusers_flux_ext.training.assemble import latent_ids
from diffusers_flux_ext.training.checkpointing import checkpoint_blocks
from diffusers_flux_ext.training.compiling import CompiledBlocks
from diffusers_flux_ext.training.frozen import store_frozen
from diffusers_flux_ext.training.optim import OptimizerSettings, build_optimizer
from diffusers_flux_ext.training.streaming import stream_blocks
from diffusers_flux_ext.training.trained import LoRAOptions, add_lora


RANK = 16
PLAIN = "as they are"
# Those of `model.storage` of a training's configuration.
BASES = ("fp8", "nf4")
STREAMED = "streamed from host memory"
OFFLOADED = "on, inputs in host memory"


def _rows(size: Size) -> Sequence[Row]:
    cases = [(PLAIN, "on", False, 1), (PLAIN, "off", False, 1), (PLAIN, "on", True, 1), (PLAIN, "on", False, 4)]
    cases += [(PLAIN, OFFLOADED, False, 1)]
    cases += [(base, "on", False, 1) for base in (*BASES, STREAMED, f"fp8, {STREAMED}")]
    if size.is_toy:
        cases = [(PLAIN, "on", False, 1), ("fp8", "on", False, 1), (PLAIN, OFFLOADED, False, 1)]
        cases += [(f"fp8, {STREAMED}", "on", False, 1)]
    return [
        Row(
            "LoRA",
            {
                "base": base,
                "checkpointing": checkpointing,
                "blocks": "compiled" if compiled else "eager",
                "batch": batch,
                "rank": RANK,
                **size.step(),
            },
            partial(_measure, base=base, checkpointing=checkpointing, compiled=compiled, batch=batch),
        )
        for base, checkpointing, compiled, batch in cases
    ]


def _batch(kit: Kit, config: Any, count: int) -> TrainingBatch:
    size = kit.size

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(count, *shape, device=kit.device, dtype=kit.dtype)

    return TrainingBatch(
        latents=normal(size.side**2, 64),
        noise=normal(size.side**2, 64),
        sigma=torch.linspace(0.2, 0.8, count, device=kit.device),
        latent_ids=latent_ids(size.pixels, size.pixels, size.side**2).to(kit.device),
        prompt_embeds=normal(size.text_tokens, config.joint_attention_dim),
        pooled_prompt_embeds=normal(config.pooled_projection_dim),
        guidance=torch.full((count,), 3.5, device=kit.device, dtype=kit.dtype),
    )


def _measure(kit: Kit, base: str, checkpointing: str, compiled: bool, batch: int) -> dict[str, Any]:
    kit.forget()
    transformer = kit.transformer()
    given = _batch(kit, transformer.config, batch)
    with FluxTraining(transformer) as training, torch.no_grad():
        operations = counted(lambda: training(given))
    for stored in (name for name in BASES if base.startswith(name)):
        _store(transformer, stored)
    if checkpointing != "off":
        checkpoint_blocks(transformer, 1, checkpointing == OFFLOADED)
    lora = add_lora(transformer, LoRAOptions("attention", rank=RANK))
    if base.endswith(STREAMED):
        transformer.to("cpu")
        kit.clock.empty()
        stream_blocks(transformer, kit.device, 0)
    optimizers = build_optimizer(lora.named_parameters(), OptimizerSettings())

    def update() -> None:
        training(given).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    with FluxTraining(transformer) as training:
        if compiled:
            training.on_close(CompiledBlocks(transformer, limit=32).close)
        found, failed = kit.clock.sides({"update": update}, kit.size.repeats, warm_up=2)
    if failed:
        raise RuntimeError(failed["update"])
    seconds, best = found["update"].median, matrix_products(kit)
    # The weights are frozen, so that a backward pass multiplies as much as a forward one; what is computed again for
    # checkpointing does not count.
    return {
        "update_ms": 1000 * seconds,
        "peak_gib": found["update"].peak_gib,
        "forward_tflop": operations / 1e12,
        "matrix_tflops": best / 1e12,
        "share_percent": 100 * 2 * operations / seconds / best,
    }


def _store(transformer: Any, base: str) -> None:
    try:
        store_frozen(transformer, base)
    except ImportError as error:
        raise Missing(f"{base} cannot be had: {error}") from error


def counted(call: Callable[[], Any]) -> int:
    """Return how many operations a call multiplies and adds with."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_products(kit: Kit, repeats: int = 10) -> float:
    """Return the operations in a second of products of large matrices, the best of some."""

    def measure() -> float:
        side = 128 if kit.size.is_toy else 8192
        one, other = (torch.randn(side, side, device=kit.device, dtype=kit.dtype) for _ in range(2))
        return 2 * side**3 / min(kit.clock.seconds(lambda: one @ other)[0] for _ in range(repeats))

    return kit.once("products", measure)


TRAINING = Section(
    "h",
    "training",
    "Training: one update of a LoRA",
    "Forward, backward and AdamW's step for a LoRA of the attention layers, with inputs that are cached; medians. The "
    "share compares twice the operations of a forward pass with products of two matrices of 8192 x 8192 numbers, "
    "measured on the same card: frozen weights need no gradients, and what gradient checkpointing computes again does "
    "not count.",
    6,
    {
        "update_ms": "update, ms",
        "peak_gib": "peak, GiB",
        "forward_tflop": "forward, TFLOP",
        "matrix_tflops": "products, TFLOP/s",
        "share_percent": "share, %",
    },
    _rows,
    {"base": "weights", "checkpointing": "checkpointing", "blocks": "blocks", "batch": "batch"},
)
