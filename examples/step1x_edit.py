"""Edit an image by an instruction with Step1X-Edit.

python examples/step1x_edit.py --file step1x-edit-v1p1-official.safetensors --image her.png --prompt "add a red hat"
"""

import argparse
from pathlib import Path

import torch
from _placing import add_vram, place
from diffusers.utils import load_image
from transformers import Qwen2_5_VLForConditionalGeneration

from diffusers_flux_ext import FluxExtTransformer2DModel, FluxStep1XEditPipeline, QwenVLProcessor, Step1XConnector


TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def main() -> None:
    """Edit one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True, help="published file of version 1.0 or 1.1")
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="gives VAE and scheduler")
    parser.add_argument("--mllm", default="Qwen/Qwen2.5-VL-7B-Instruct", help="repository or folder of Qwen2.5-VL")
    parser.add_argument("--image", required=True, help="image to edit")
    parser.add_argument("--prompt", required=True, help="what to do")
    parser.add_argument("--size-level", type=int, default=1024, help="512, 768 or 1024")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--out", type=Path, default=Path("edited.png"))
    add_vram(parser)
    args = parser.parse_args()

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    connector = Step1XConnector.from_single_file(args.file, torch_dtype=dtype)
    pipe = FluxStep1XEditPipeline.from_pretrained(
        args.model,
        transformer=FluxExtTransformer2DModel.from_single_file(args.file, torch_dtype=dtype),
        connector=connector,
        mllm=Qwen2_5_VLForConditionalGeneration.from_pretrained(args.mllm, dtype=dtype),
        mllm_processor=QwenVLProcessor.from_pretrained(args.mllm),
        torch_dtype=dtype,
        **dict.fromkeys(TEXT_ENCODERS),
    )
    place(pipe, args.vram)
    image = pipe(
        args.prompt,
        image=load_image(args.image),
        size_level=args.size_level,
        num_inference_steps=args.steps,
        # As published since version 1.1, whose connector has no scale.
        rescale_above=None if connector.config.scale_pooled else 0.93,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
