"""Images as prompts, with FLUX.1-dev and InstantX' adapter, or a dry run with the embedded tiny model.

python examples/ip_adapter.py
python examples/ip_adapter.py --model black-forest-labs/FLUX.1-dev --adapter ip-adapter.bin --image style.png

The tiny model has no trained adapter: without arguments a random one shows that images, masks and entities arrive.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _placing import add_vram, place
from diffusers.hooks import apply_group_offloading
from diffusers.utils import load_image
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

from diffusers_flux_ext import EntityRegions, FluxConditionedPipeline, FluxIPAdapter, IPAdapterImages, tiny_flux_path


TINY: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 20, "max_sequence_length": 32}
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def random_modules(transformer: Any) -> tuple[FluxIPAdapter, SiglipVisionModel]:
    """Return an untrained adapter in InstantX' structure for any transformer, and a small untrained encoder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=64, patch_size=16)).eval()
    adapter = FluxIPAdapter(
        num_blocks=transformer.config.num_layers + transformer.config.num_single_layers,
        attention_head_dim=transformer.config.attention_head_dim,
        num_attention_heads=transformer.config.num_attention_heads,
        cross_attention_dim=64,
        image_embed_dim=64,
        num_tokens=8,
    )
    return adapter.eval(), encoder


def main() -> None:
    """Draw with an image as a prompt, then with two images in regions of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="repository or folder; the embedded tiny model by default")
    parser.add_argument("--adapter", help="ip-adapter.bin or a safetensors file; needed with --model")
    parser.add_argument("--encoder", default="google/siglip-so400m-patch14-384", help="SigLIP for --adapter")
    parser.add_argument("--image", nargs="+", help="one or two images; plain colours by default")
    parser.add_argument("--prompt", default="a white background")
    parser.add_argument("--scale", type=float, default=0.7)
    parser.add_argument("--steps", type=int, help="20 with the tiny model and 28 with another by default")
    parser.add_argument(
        "--offload", choices=["none", "group"], default="none", help="keep one block on the GPU at a time"
    )
    parser.add_argument("--out", type=Path, default=Path("ip_adapter"))
    add_vram(parser)
    args = parser.parse_args()
    if args.model and not args.adapter:
        parser.error("--model needs --adapter")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and args.model else torch.float32
    pipe = FluxConditionedPipeline.from_pretrained(args.model or tiny_flux_path(), dtype=dtype)
    if args.adapter:
        adapter = FluxIPAdapter.from_single_file(args.adapter, dtype=dtype)
        encoder = SiglipVisionModel.from_pretrained(args.encoder, dtype=dtype)
    else:
        adapter, encoder = random_modules(pipe.transformer)
    if args.vram is not None:
        pictures_of = {"adapter": adapter, "image_encoder": encoder}
        known = [IPAdapterImages(images=Image.new("RGB", (64, 64)), **pictures_of)]
        place(pipe, args.vram, conditions=known, **({} if args.model else {"height": 128, "width": 128}))
    elif args.offload == "group":
        for module in (pipe.transformer, pipe.text_encoder_2, adapter):
            apply_group_offloading(
                module, onload_device=torch.device(device), offload_type="block_level", num_blocks_per_group=1
            )
        encoder, pipe.text_encoder, pipe.vae = (part.to(device) for part in (encoder, pipe.text_encoder, pipe.vae))
    else:
        adapter, encoder, pipe = adapter.to(device), encoder.to(device), pipe.to(device)
    colours = [Image.new("RGB", (64, 64), name) for name in ("orange", "navy")]
    images = [load_image(path) for path in args.image] if args.image else colours
    size = {} if args.model else dict(TINY)
    if args.steps:
        size["num_inference_steps"] = args.steps

    def prompted(image: Image.Image, **options: Any) -> IPAdapterImages:
        return IPAdapterImages(adapter, image, args.scale, image_encoder=encoder, **options)

    args.out.mkdir(parents=True, exist_ok=True)
    image = pipe(args.prompt, conditions=[prompted(images[0])], **size, generator=torch.manual_seed(0)).images[0]
    image.save(args.out / "one.png")
    conditions = [
        EntityRegions(["a red circle", "a blue star"], [LEFT, RIGHT]),
        prompted(images[0], region=LEFT, end=0.8),
        prompted(images[-1], region=RIGHT, end=0.8),
    ]
    image = pipe(args.prompt, conditions=conditions, **size, generator=torch.manual_seed(0)).images[0]
    image.save(args.out / "regions.png")


if __name__ == "__main__":
    main()
