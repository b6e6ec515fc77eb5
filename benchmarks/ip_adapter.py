"""IP-Adapter: a transformer step beside the reference, and the double blocks' attention beside diffusers' processor.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.ip_adapter --part attention --images 0 1 4
    python -m benchmarks.ip_adapter --part step --images 0 1 4
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxIPAdapterAttnProcessor, FluxPosEmbed

from benchmarks.eligen import CONTEXT, POOLED, tiny_transformer
from benchmarks.support.reference.dit import reference_dit
from benchmarks.support.reference.ip_adapter import reference_ip_adapter
from benchmarks.support.reference.pipeline import flux_image
from diffusers_flux_ext import DenoisingStep, FluxIPAdapter, IPAdapterImages, PromptEmbeds, predict_velocity
from diffusers_flux_ext.attention.image_prompts import PlacedPrompt, PlacedPrompts
from diffusers_flux_ext.attention.processor import FluxRegionalAttnProcessor, regional_attention


HEAD_DIM, CROSS_DIM, EMBED_DIM = 128, 4096, 64
Sides = Mapping[str, Callable[[], Any]]


def image_ids(tokens: int) -> torch.Tensor:
    """Return rotary positions of a square image, `(tokens, 3)`."""
    side = round(tokens**0.5)
    return torch.cartesian_prod(torch.zeros(1), torch.arange(side).float(), torch.arange(side).float())


def attention_sides(args: argparse.Namespace, image_tokens: int, images: int) -> Sides:
    """Return one double block's attention with an adapter in XLabs' structure, with the same weights on both sides."""
    torch.manual_seed(0)
    heads = args.width // HEAD_DIM
    layer = FluxAttention(
        args.width, heads, HEAD_DIM, bias=True, added_kv_proj_dim=args.width, out_dim=args.width, eps=1e-6
    )
    stock = FluxIPAdapterAttnProcessor(args.width, CROSS_DIM, num_tokens=[args.prompt_tokens])
    ours = FluxRegionalAttnProcessor(block=0)
    image, text = torch.randn(1, image_tokens, args.width), torch.randn(1, args.text_tokens, args.width)
    rotary = FluxPosEmbed(10000, [16, 56, 56])(torch.cat([torch.zeros(args.text_tokens, 3), image_ids(image_tokens)]))
    tokens = torch.randn(1, images * args.prompt_tokens, CROSS_DIM)
    inputs = {"hidden_states": image, "encoder_hidden_states": text, "image_rotary_emb": rotary}
    if not images:
        return {"diffusers": lambda: layer.processor(layer, **inputs), "ours": lambda: ours(layer, **inputs)}
    keys, values = (linear(tokens).view(1, 1, -1, heads, HEAD_DIM) for linear in (stock.to_k_ip[0], stock.to_v_ip[0]))
    prompts = PlacedPrompts((PlacedPrompt(keys, values, None, None, after_block=True),), ())
    return {
        "diffusers": lambda: stock(layer, **inputs, ip_hidden_states=[tokens]),
        "ours": lambda: ours(layer, **inputs, image_prompts=prompts),
    }


def step_sides(args: argparse.Namespace, image_tokens: int, images: int) -> Sides:
    """Time one step of a transformer with an adapter in InstantX' structure; keys and values are made beforehand."""
    heads, side = args.width // HEAD_DIM, round(image_tokens**0.5)
    transformer = tiny_transformer(args.width, args.double, args.single)
    adapter = FluxIPAdapter(
        num_blocks=args.double + args.single,
        num_attention_heads=heads,
        image_embed_dim=EMBED_DIM,
        num_tokens=args.prompt_tokens,
    ).eval()
    latents = torch.randn(1, 16, 2 * side, 2 * side)
    packed = latents.view(1, 16, side, 2, side, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, side * side, 64)
    prompt, pooled = torch.randn(1, args.text_tokens, CONTEXT), torch.randn(1, POOLED)
    embeds, text_ids = torch.randn(max(images, 1), EMBED_DIM), torch.zeros(args.text_tokens, 3)
    step = DenoisingStep(
        0, 1, "cond", torch.tensor([0.5]), packed, image_ids(image_tokens), PromptEmbeds(prompt, pooled, text_ids),
        torch.tensor([3.5]),
    )  # fmt: skip
    parts = [IPAdapterImages(adapter, image_embeds=embeds).contribute({"image_embeds": embeds[None]}, step)]
    named = {"ipadapter_kwargs_list": reference_ip_adapter(adapter)(embeds)}
    dit = reference_dit(transformer)

    def reference() -> torch.Tensor:
        return flux_image.model_fn_flux_image(
            dit=dit,
            latents=latents,
            timestep=torch.tensor([500.0]),
            prompt_emb=prompt,
            pooled_prompt_emb=pooled,
            guidance=torch.tensor([3.5]),
            text_ids=text_ids[None],
            **(named if images else {}),
        )

    def ours() -> torch.Tensor:
        with regional_attention(transformer):
            return predict_velocity(transformer, step, parts if images else [])

    return {"reference": reference, "ours": ours}


def measure(sides: Sides, repeats: int) -> dict[str, float]:
    """Return median processor seconds of each side, interleaved in one process; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name in list(sides)[:: 1 if repeat % 2 else -1]:
            start = time.thread_time()
            sides[name]()
            if repeat:
                seconds[name].append(time.thread_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


PARTS = {"attention": ("diffusers", attention_sides), "step": ("reference", step_sides)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--images", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--prompt-tokens", type=int, default=128, help="tokens of one image")
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=3072)
    parser.add_argument("--double", type=int, default=1)
    parser.add_argument("--single", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    other, make_sides = PARTS[args.part]
    sys.stdout.write(f"| image tokens | images | {other}, s | ours, s | {other} / ours |\n|" + "---|" * 5 + "\n")
    with torch.no_grad():
        for image_tokens in args.image_tokens:
            for images in args.images:
                times = measure(make_sides(args, image_tokens, images), args.repeats)
                cells = [str(image_tokens), str(images), f"{times[other]:.3f}", f"{times['ours']:.3f}"]
                sys.stdout.write("| " + " | ".join([*cells, f"{times[other] / times['ours']:.2f}"]) + " |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
