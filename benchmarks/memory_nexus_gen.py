"""What Nexus-Gen V2 needs on a graphics card in each phase of a call, computed from the shapes of the released models.

Builds every model on the meta device, so it needs neither weights nor memory. Nothing here is measured:

    python -m benchmarks.memory_nexus_gen
"""

import sys
from dataclasses import dataclass

import torch
from transformers import Qwen2_5_VLConfig

from benchmarks.memory_table import BYTES, GIB, RESERVE, WIDTH, WIDTHS_HELD, Sizes, build_models, measure
from diffusers_flux_ext import NexusGenAdapter, NexusGenEditingMerger, NexusGenModel


# The config of the published checkpoint; what is left out is as in transformers.
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
VISION = {"hidden_size": 1280}
# The chat, the image to be drawn, and a given image of 504 x 504 pixels.
CHAT_TOKENS, DRAWN_TOKENS, GIVEN_TOKENS = 60, 81, 324
T5_TOKENS = 512
# A layer of the language model holds its hidden states and norm, queries, keys, values and their result, and the two
# parts of the feed-forward layer with their product.
LAYER_WIDTHS = 6 * TEXT["hidden_size"] + 3 * TEXT["intermediate_size"]
# Width and inner width of T5, alike; the square of the length is for its 64 heads of attention, in float32.
T5_WIDTHS, T5_HEADS = 6 * 4096 + 3 * 10240, 64


@dataclass(frozen=True)
class Phase:
    """One phase of a call: the models that run in it one after the other, and bytes of activations."""

    title: str
    models: tuple[str, ...]
    activations: int


def language_model_sizes() -> dict[str, Sizes]:
    """Return Nexus-Gen's own models."""
    with torch.device("meta"):
        models = {
            "language model": NexusGenModel(Qwen2_5_VLConfig(text_config=TEXT, vision_config=VISION)),
            "adapter": NexusGenAdapter(),
            "merger": NexusGenEditingMerger(),
        }
    return {name: measure(model) for name, model in models.items()}


def loop_activations(side: int, text_tokens: int) -> int:
    """Return bytes that a block of the transformer holds, for a square image of this side in pixels."""
    return ((side // 16) ** 2 + text_tokens) * WIDTH * WIDTHS_HELD * BYTES


def phases(edits: bool, side: int) -> list[Phase]:
    """Return the phases of drawing or editing one square image of this side in pixels."""
    tokens = DRAWN_TOKENS + (GIVEN_TOKENS if edits else 0)
    asked = CHAT_TOKENS + tokens
    # The pipeline's negative prompt has T5's tokens.
    longest = tokens if edits else max(tokens, T5_TOKENS)
    return [
        Phase("CLIP, T5", ("CLIP", "T5"), T5_TOKENS * (T5_WIDTHS * BYTES + T5_HEADS * T5_TOKENS * 4)),
        Phase("language model", ("language model",), asked * LAYER_WIDTHS * BYTES),
        Phase("merger" if edits else "adapter", ("merger" if edits else "adapter",), tokens * LAYER_WIDTHS * BYTES),
        Phase("loop", ("transformer",), loop_activations(side, longest)),
    ]


def streamed(size: Sizes) -> int:
    """Return bytes with group offload by blocks: the next block is on its way while one runs."""
    return min(size.total, size.total - size.blocks + 2 * size.largest_block)


def main() -> None:
    """Print the models, and a table of phases for drawing and for editing."""
    sizes = {name: measure(model) for name, model in build_models().items()} | language_model_sizes()
    ours = ("CLIP", "T5", "language model", "adapter", "merger", "transformer", "VAE")
    for name in ours:
        sys.stdout.write(f"{name}: {sizes[name].total / GIB:.2f} GiB\n")
    cases = {"drawing, 1024 x 1024, with CFG": (False, 1024), "editing, 512 x 512": (True, 512),
             "editing, 1024 x 1024": (True, 1024)}  # fmt: skip
    for title, (edits, side) in cases.items():
        used = phases(edits, side)
        sys.stdout.write(f"\n| {title}: GiB, computed | weights | activations | phase | phase, group offload |\n")
        sys.stdout.write("|---|---|---|---|---|\n")
        peaks = []
        for phase in used:
            weights = max(sizes[name].total for name in phase.models)
            grouped = max(streamed(sizes[name]) for name in phase.models)
            both = (weights + phase.activations, grouped + phase.activations)
            peaks.append(both)
            cells = [f"{value / GIB:.2f}" for value in (weights, phase.activations, *both)]
            sys.stdout.write(f"| {phase.title} | {' | '.join(cells)} |\n")
        peak = [f"{max(column) / GIB + RESERVE:.1f}" for column in zip(*peaks)]
        sys.stdout.write(f"| peak, with {RESERVE} GiB set aside | | | {' | '.join(peak)} |\n")
        names = {name for phase in used for name in phase.models} | {"VAE"}
        everything = sum(sizes[name].total for name in names) + max(phase.activations for phase in used)
        sys.stdout.write(f"| everything at once | | | {everything / GIB + RESERVE:.1f} | |\n")


if __name__ == "__main__":
    main()
