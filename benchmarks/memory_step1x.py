"""What Step1X-Edit keeps on the card in each phase, computed from the shapes of the released models.

Builds every model on the meta device, so it needs neither weights nor memory. Nothing here is measured:

    python -m benchmarks.memory_step1x
"""

import sys

import torch
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from benchmarks.memory_table import BYTES, GIB, RESERVE, WIDTH, WIDTHS_HELD, Sizes, build_models, fp8_bytes, measure
from diffusers_flux_ext import FluxExtTransformer2DModel, Step1XConnector


CARDS = (16, 24)
IMAGE_TOKENS, TEXT_TOKENS = 4096, 640
# Qwen2.5-VL 7B: a chat of the question, an image of at most 324 tokens and an instruction; two states of the MLP.
CHAT_TOKENS, LAYERS, LM_WIDTH, LM_INNER = 900, 28, 3584, 18944
# Only the norms of queries and keys, so that the modulation is stored in fp8, too.
NORMS_ONLY = ("pos_embed", "norm_q", "norm_k", "norm_added", "^proj_out$")
# The vision model casts images to the data type of its patch embedder.
LM_SKIP = ("norm", "ln_q", "patch_embed")
READ, IMAGE, LOOP, DECODE = "read the instruction", "encode the image", "denoise", "decode"


def language_model() -> nn.Module:
    """Return Qwen2.5-VL 7B on the meta device."""
    text = {
        "hidden_size": LM_WIDTH,
        "intermediate_size": LM_INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": LM_WIDTH,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


def build() -> dict[str, nn.Module]:
    """Return the released models on the meta device."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "transformer": FluxExtTransformer2DModel(),
            "connector": Step1XConnector(),
        }
    return {**parts, "Qwen2.5-VL": language_model(), "VAE": build_models()["VAE"]}


def streamed(size: Sizes) -> int:
    """Return resident bytes with group offloading by block and a stream: the parts outside blocks, and two blocks."""
    return size.total - size.blocks + 2 * size.largest_block


def phases() -> dict[str, dict[str, float]]:
    """Return GiB on the card by way and phase, for 1024 x 1024 pixels, the phases one after the other."""
    sizes = {name: measure(model) for name, model in build().items()}
    more = {
        name: fp8_bytes(model, NORMS_ONLY) for name, model in build().items() if name in ("transformer", "connector")
    }
    lm_fp8 = fp8_bytes(language_model(), LM_SKIP)
    lm, vae = sizes["Qwen2.5-VL"], sizes["VAE"].total
    reading = CHAT_TOKENS * ((LAYERS + 1) * LM_WIDTH + 2 * LM_INNER) * BYTES
    drawing = (2 * IMAGE_TOKENS + TEXT_TOKENS) * WIDTH * WIDTHS_HELD * BYTES
    loop = ("transformer", "connector")
    ways = {
        "bfloat16, model offload": (lm.total, sum(sizes[name].total for name in loop)),
        "fp8 storage, model offload": (lm.total, sum(sizes[name].fp8 for name in loop)),
        "fp8 storage with modulation and Qwen2.5-VL, model offload": (lm_fp8, sum(more.values())),
        "group offload of transformer and Qwen2.5-VL": (
            streamed(lm),
            streamed(sizes["transformer"]) + sizes["connector"].total,
        ),
    }
    found = {"all on the card": dict.fromkeys((READ, IMAGE, LOOP, DECODE), sum(each.total for each in sizes.values()))}
    found["all on the card"][LOOP] += drawing
    for way, (read, draw) in ways.items():
        found[way] = {READ: read + reading, IMAGE: vae, LOOP: draw + drawing, DECODE: vae}
    return {way: {name: value / GIB + RESERVE for name, value in parts.items()} for way, parts in found.items()}


def main() -> None:
    """Print the sizes and the table."""
    for name, model in build().items():
        each = measure(model)
        sys.stdout.write(f"{name}: {each.total / GIB:.2f} GiB\n")
    names = (READ, IMAGE, LOOP, DECODE)
    sys.stdout.write(
        "\n| GiB, computed | " + " | ".join(names) + " | peak | fits |\n|" + "---|" * (3 + len(names)) + "\n"
    )
    for way, parts in phases().items():
        peak = max(parts.values())
        fits = next((f"{card} GB" for card in CARDS if peak <= card), "")
        cells = [f"{parts[name]:.1f}" for name in names]
        sys.stdout.write(f"| {way} | " + " | ".join(cells) + f" | {peak:.1f} | {fits} |\n")


if __name__ == "__main__":
    main()
