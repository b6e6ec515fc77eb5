"""Draw, edit or describe an image with Nexus-Gen V2.

python examples/nexus_gen.py --nexus-gen Nexus-GenV2 --prompt "a cute cat" --out cat.png
python examples/nexus_gen.py --nexus-gen Nexus-GenV2 --prompt "Add a pair of sunglasses" --image cat.png --out edit.png
python examples/nexus_gen.py --nexus-gen Nexus-GenV2 --image cat.png --question "What does the cat wear?"
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from _placing import add_vram, place
from diffusers.hooks import apply_group_offloading
from diffusers.utils import load_image

from diffusers_flux_ext import FluxNexusGenPipeline, NexusGenModel, QwenVLProcessor, load_nexus_gen_decoder


FILES = {"generation": "generation_decoder.bin", "editing": "edit_decoder.bin"}


def load_language_model(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Return the language model and its processor."""
    return {
        "mllm": NexusGenModel.from_pretrained(folder, dtype=dtype),
        "mllm_processor": QwenVLProcessor.from_pretrained(folder / "processor"),
    }


def load_pipeline(args: argparse.Namespace, decoder: str, dtype: torch.dtype) -> Any:
    """Return a pipeline with the transformer and the adapter of one decoder."""
    transformer, adapter = load_nexus_gen_decoder(args.nexus_gen / FILES[decoder], dtype=dtype)
    parts: dict[str, Any] = {"transformer": transformer, f"{decoder}_adapter": adapter}
    models = load_language_model(args.nexus_gen, dtype)
    pipe = FluxNexusGenPipeline.from_pretrained(args.model, dtype=dtype, **parts, **models)
    if args.vram is not None:
        place(pipe, args.vram, height=args.size, width=args.size)
        return pipe
    if not torch.cuda.is_available():
        return pipe
    if args.offload == "model":
        pipe.enable_model_cpu_offload()
    else:
        offload = {"onload_device": torch.device("cuda"), "offload_type": "block_level", "num_blocks_per_group": 1}
        for module in (pipe.transformer, pipe.mllm, pipe.text_encoder_2):
            apply_group_offloading(module, use_stream=True, **offload)
        for module in (pipe.text_encoder, adapter, pipe.vae):
            module.to("cuda")
    pipe.vae.enable_tiling()
    return pipe


def main() -> None:
    """Answer the question, or else draw or edit one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository or folder")
    parser.add_argument("--nexus-gen", type=Path, required=True, help="folder with the published files")
    parser.add_argument("--prompt", help="a description, or an instruction for --image")
    parser.add_argument("--image", help="the image to edit or to ask about")
    parser.add_argument("--question", help="asked about --image; nothing is drawn then")
    parser.add_argument("--decoder", choices=FILES, help="default: editing with an image, generation without one")
    parser.add_argument("--language", choices=("en", "zh"), default="en", help="of a description")
    parser.add_argument("--true-cfg-scale", type=float, help="default: 3 for the generation decoder, 1 for the other")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--offload", choices=("model", "group"), default="model")
    parser.add_argument("--out", type=Path, default=Path("nexus_gen.png"))
    add_vram(parser)
    args = parser.parse_args()
    if args.question is None and args.prompt is None:
        parser.error("give --prompt to draw, or --question to ask")

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    image = load_image(args.image) if args.image else None
    if args.question is not None:
        models = load_language_model(args.nexus_gen, dtype)
        mllm = models["mllm"].to("cuda" if torch.cuda.is_available() else "cpu")
        sys.stdout.write(mllm.describe(image, args.question, processor=models["mllm_processor"]) + "\n")
        return
    decoder = args.decoder or ("generation" if image is None else "editing")
    scale = args.true_cfg_scale or (3.0 if decoder == "generation" else 1.0)
    drawn = load_pipeline(args, decoder, dtype)(
        args.prompt,
        image=image,
        decoder=decoder,
        language=args.language,
        negative_prompt="" if scale > 1 else None,
        true_cfg_scale=scale,
        height=args.size,
        width=args.size,
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    drawn.save(args.out)


if __name__ == "__main__":
    main()
