"""What fits into the memory of a graphics card, computed from the shapes of the released models.

Builds every model on the meta device, so it needs neither weights nor memory. Nothing here is measured:

    python -m benchmarks.memory_table
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import ModelMixin
from diffusers.hooks import apply_layerwise_casting
from torch import nn

from diffusers_flux_ext import FluxIPAdapter, InfiniteYouImageProjector
from diffusers_flux_ext.methods.catalog import flux_models, on_meta
from diffusers_flux_ext.methods.control import released as controlnets
from diffusers_flux_ext.models.released import siglip


GIB = 2**30
CARDS = (8, 12, 16, 24)
# Left free for the CUDA context, the allocator and the VAE in tiles.
RESERVE = 1.5
IMAGE_TOKENS, TEXT_TOKENS, WIDTH, BYTES = 4096, 512, 3072, 2
# A single block holds the hidden states, their norm, queries, keys, values, the MLP and its concatenation with them.
WIDTHS_HELD = 1 + 1 + 3 + 4 + 5
IP_ADAPTER_BLOCKS, IP_ADAPTER_TOKENS = 57, 128
# Blocks of each ControlNet, each with a residual.
RESIDUALS = {"Union-Pro": 15, "Inpainting-Beta": 6, "XLabs": 2, "InfuseNet": 14}
IP_ADAPTER = "InstantX' IP-Adapter"
# What a method runs only before the loop.
ENCODERS = {"InfuseNet": "projector", IP_ADAPTER: "SigLIP"}
SETUPS: dict[str, tuple[str, ...]] = {
    "FLUX.1-dev": (),
    "+ ControlNet Union-Pro": ("Union-Pro",),
    "+ ControlNet Inpainting-Beta": ("Inpainting-Beta",),
    "+ ControlNet of XLabs": ("XLabs",),
    "+ InfiniteYou": ("InfuseNet",),
    "+ InfiniteYou, Union-Pro": ("InfuseNet", "Union-Pro"),
    "+ IP-Adapter of InstantX": (IP_ADAPTER,),
}


@dataclass(frozen=True)
class Sizes:
    """Bytes of one model: total, blocks and largest block in bfloat16; total with fp8 storage."""

    total: int
    blocks: int
    largest_block: int
    fp8: int


CONTROLNETS = {
    "Union-Pro": controlnets.union_pro,
    "Inpainting-Beta": controlnets.inpaint,
    "XLabs": controlnets.xlabs,
    "InfuseNet": controlnets.infuse_net,
}


def build_models() -> dict[str, nn.Module]:
    """Return the released models on the meta device."""
    flux = flux_models()
    names = {"transformer": "transformer", "T5": "text_encoder_2", "CLIP": "text_encoder", "VAE": "vae"}
    models = {name: flux[component] for name, component in names.items()}
    others = {"projector": InfiniteYouImageProjector, "SigLIP": siglip, IP_ADAPTER: FluxIPAdapter, **CONTROLNETS}
    return models | {name: on_meta(make) for name, make in others.items()}


def measure(model: nn.Module) -> Sizes:
    """Return sizes from shapes; the blocks are the items of the model's lists."""

    def weigh(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters()) * BYTES

    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList)]
    outer = [each for each in lists if not any(each is not other and each in set(other.modules()) for other in lists)]
    blocks = [weigh(block) for each in outer for block in each]
    return Sizes(weigh(model), sum(blocks), max(blocks, default=0), fp8_bytes(model))


def fp8_bytes(model: nn.Module, skip: tuple[str, ...] | None = None) -> int:
    """Return bytes with fp8 storage; diffusers leaves norms, their modulation and patch embedders as they are.

    Args:
        model (`nn.Module`): The model, which is changed; one of another library keeps its data type without `skip`.
        skip (`tuple[str, ...]`, *optional*): Patterns of the modules to leave instead.
    """
    if not isinstance(model, ModelMixin) and skip is None:
        return sum(weight.numel() for weight in model.parameters()) * BYTES
    model.to(torch.bfloat16)
    if isinstance(model, ModelMixin) and skip is None:
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    else:
        apply_layerwise_casting(model, torch.float8_e4m3fn, torch.bfloat16, skip or ())
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def residual_bytes(setup: tuple[str, ...]) -> int:
    """Return the bytes of one step's residuals: one per block of each ControlNet."""
    return sum(RESIDUALS.get(name, 0) for name in setup) * IMAGE_TOKENS * WIDTH * BYTES


def image_prompt_bytes(setup: tuple[str, ...]) -> int:
    """Return the bytes of keys and values that an IP-Adapter keeps during the loop, for one image."""
    return 2 * IP_ADAPTER_BLOCKS * IP_ADAPTER_TOKENS * WIDTH * BYTES if IP_ADAPTER in setup else 0


def peaks(sizes: Mapping[str, Sizes], setup: tuple[str, ...]) -> dict[str, float]:
    """Return peak GiB of each way to place the weights, fastest first, for 1024 x 1024 pixels."""
    loop = [sizes["transformer"], *(sizes[name] for name in setup)]
    encoders = [ENCODERS[name] for name in setup if name in ENCODERS]
    activations = (IMAGE_TOKENS + TEXT_TOKENS) * WIDTH * WIDTHS_HELD * BYTES
    activations += residual_bytes(setup) + image_prompt_bytes(setup)
    rest = sum(sizes[name].total for name in ("T5", "CLIP", "VAE", *encoders))
    in_loop = sum(each.total for each in loop)
    in_fp8 = sum(each.fp8 for each in loop)
    # With a stream, the next block is on its way while one runs.
    streamed = sum(each.total - each.blocks + 2 * each.largest_block for each in loop)
    text = sizes["T5"]
    found = {
        "all on the card": in_loop + rest + activations,
        "model offload": max(in_loop + activations, text.total),
        "fp8 storage, model offload": max(in_fp8 + activations, text.total),
        "group offload": max(streamed + activations, text.total - text.blocks + 2 * text.largest_block),
    }
    return {name: value / GIB + RESERVE for name, value in found.items()}


def main() -> None:
    """Print both tables."""
    sizes = {name: measure(model) for name, model in build_models().items()}
    for name, each in sizes.items():
        sys.stdout.write(f"{name}: {each.total / GIB:.2f} GiB\n")
    names = list(peaks(sizes, ()))
    sys.stdout.write("\n| GiB, computed | " + " | ".join(names) + " |\n|" + "---|" * (1 + len(names)) + "\n")
    for title, setup in SETUPS.items():
        cells = [f"{value:.1f}" for value in peaks(sizes, setup).values()]
        sys.stdout.write(f"| {title} | " + " | ".join(cells) + " |\n")
    heads = " | ".join(f"{card} GB" for card in CARDS)
    sys.stdout.write(f"\n| fastest way that fits, computed | {heads} |\n|" + "---|" * (1 + len(CARDS)) + "\n")
    for title, setup in SETUPS.items():
        ways = peaks(sizes, setup)
        fits = [next((name for name, peak in ways.items() if peak <= card), "nothing") for card in CARDS]
        sys.stdout.write(f"| {title} | " + " | ".join(fits) + " |\n")


if __name__ == "__main__":
    main()
