"""Images as a part of the prompt with FLUX.1 Redux, each with a strength.

python examples/redux.py --redux FLUX.1-Redux-dev --image sofa.png@0.3 --image cat.png@0.6 --prompt "a dark room"
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import load_image
from transformers import SiglipVisionModel

from diffusers_flux_ext import FluxConditionedPipeline, ReduxImages, load_redux_embedder


def main() -> None:
    """Draw one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository or folder")
    parser.add_argument("--redux", type=Path, required=True, help="local copy of FLUX.1-Redux-dev")
    parser.add_argument("--image", action="append", required=True, help="file, or file@strength; may be repeated")
    parser.add_argument("--prompt", default="", help="what else to draw")
    parser.add_argument("--prompt-scale", type=float, default=1.0, help="0 throws the prompt away")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("redux.png"))
    add_vram(parser)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    encoder = SiglipVisionModel.from_pretrained(args.redux / "image_encoder", dtype=dtype)
    embedder = load_redux_embedder(args.redux, torch_dtype=dtype, device=device)
    pipe = FluxConditionedPipeline.from_pretrained(args.model, image_encoder=encoder, dtype=dtype)
    place(pipe, args.vram)
    given = [image.rpartition("@")[::2] if "@" in image else (image, "1") for image in args.image]
    redux = ReduxImages(
        [load_image(path) for path, _ in given],
        [float(strength) for _, strength in given],
        prompt_scale=args.prompt_scale,
        pooled_scale=args.prompt_scale,
        image_embedder=embedder,
    )
    image = pipe(
        args.prompt,
        conditions=[redux],
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
