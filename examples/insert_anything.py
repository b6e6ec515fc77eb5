"""Put the object of one image into another with Insert-Anything.

python examples/insert_anything.py person.png person_mask.png shirt.png shirt_mask.png --redux FLUX.1-Redux-dev
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import load_image
from transformers import SiglipVisionModel

from diffusers_flux_ext import FluxInsertAnythingPipeline, load_redux_embedder


def main() -> None:
    """Draw one image of the size of the source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("source", "source_mask", "reference", "reference_mask"):
        parser.add_argument(name, help="white counts" if "mask" in name else "an image")
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-Fill-dev", help="repository or folder")
    parser.add_argument("--redux", type=Path, required=True, help="local copy of FLUX.1-Redux-dev")
    parser.add_argument("--lora", default="WensongSong/Insert-Anything", help="file, folder or repository")
    parser.add_argument("--lora-weight-name", default="20250321_steps5000_pytorch_lora_weights.safetensors")
    parser.add_argument("--height", type=int, default=768, help="of the canvas")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--keep-outside", action="store_true", help="leave everything outside of the mask as it is")
    parser.add_argument("--out", type=Path, default=Path("inserted.png"))
    add_vram(parser)
    args = parser.parse_args()

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    pipe = FluxInsertAnythingPipeline.from_pretrained(
        args.model,
        image_encoder=SiglipVisionModel.from_pretrained(args.redux / "image_encoder", dtype=dtype),
        image_embedder=load_redux_embedder(args.redux, torch_dtype=dtype),
        # The weights were trained without a prompt.
        **dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]),
        dtype=dtype,
    )
    is_file = Path(args.lora).is_file()
    pipe.load_lora_weights(args.lora, **({} if is_file else {"weight_name": args.lora_weight_name}))
    place(pipe, args.vram)
    image = pipe(
        source_image=load_image(args.source),
        source_mask=load_image(args.source_mask),
        reference_image=load_image(args.reference),
        reference_mask=load_image(args.reference_mask),
        height=args.height,
        num_inference_steps=args.steps,
        paste_back="mask" if args.keep_outside else "crop",
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
