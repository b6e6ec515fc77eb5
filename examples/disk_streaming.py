"""An image on a machine with less memory than the model: transformer and T5 are read from disk block by block.

python examples/disk_streaming.py --model FLUX.1-dev --prompt "a fox in a forest" --ram-budget-gib 4
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers import FluxTransformer2DModel
from transformers import T5EncoderModel

from diffusers_flux_ext import FluxConditionedPipeline, load_streamed, release_disk_buffers


def main() -> None:
    """Draw one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="local folder of a FLUX.1 pipeline")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--ram-budget-gib", type=float, help="host memory for the transformer's blocks")
    parser.add_argument("--out", type=Path, default=Path("disk_streaming.png"))
    add_vram(parser)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Most CPUs compute faster in float32; what is read from disk stays as small as it is stored.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    where = {"onload_device": device, "compute_dtype": dtype}
    transformer = load_streamed(
        FluxTransformer2DModel, args.model / "transformer", ram_budget_gib=args.ram_budget_gib, **where
    )
    text_encoder = load_streamed(T5EncoderModel, args.model / "text_encoder_2", **where)
    pipe = FluxConditionedPipeline.from_pretrained(
        args.model, transformer=transformer, text_encoder_2=text_encoder, dtype=dtype
    )
    if args.vram is not None:
        place(pipe, args.vram, height=args.size, width=args.size)
    else:
        pipe.to(device)
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt(args.prompt, args.prompt)
    release_disk_buffers(text_encoder)
    image = pipe(
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        height=args.size,
        width=args.size,
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
