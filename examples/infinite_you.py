"""One or two people in one image, with InfiniteYou and offloading.

python examples/infinite_you.py --infinite-you InfiniteYou/infu_flux_v1.0/aes_stage2 \
    --arcface recognition_arcface_ir_se50.pth --insightface InfiniteYou/supports/insightface \
    --prompt "two friends on a bridge" --person her.png --person him.png --offload group
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _placing import add_vram, place
from diffusers.hooks import apply_group_offloading
from diffusers.utils import load_image

from diffusers_flux_ext import (
    FluxExtControlNetModel,
    FluxInfiniteYouPipeline,
    InfiniteYouIdentity,
    InfiniteYouImageProjector,
    InsightFaceEncoder,
    infinite_you_preset,
)


def load_pipeline(args: argparse.Namespace) -> Any:
    """Return the pipeline with InfuseNet, the projector and the face encoder."""
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    infusenet, projector = args.infinite_you / "InfuseNetModel", args.infinite_you / "image_proj_model.bin"
    pipe = FluxInfiniteYouPipeline.from_pretrained(
        args.model,
        controlnet=FluxExtControlNetModel.from_pretrained(infusenet, torch_dtype=dtype),
        image_projector=InfiniteYouImageProjector.from_single_file(projector, torch_dtype=dtype),
        face_encoder=InsightFaceEncoder(args.arcface, root=args.insightface),
        dtype=dtype,
    )
    if args.vram is not None:
        place(pipe, args.vram, height=args.size[0], width=args.size[1])
        return pipe
    if not torch.cuda.is_available():
        return pipe
    if args.offload == "model":
        pipe.enable_model_cpu_offload()
    elif args.offload == "group":
        offload = {"onload_device": torch.device("cuda"), "offload_type": "block_level", "num_blocks_per_group": 1}
        for module in (pipe.transformer, pipe.controlnet, pipe.text_encoder_2):
            apply_group_offloading(module, use_stream=True, **offload)
        for module in (pipe.text_encoder, pipe.image_projector, pipe.vae):
            module.to("cuda")
    else:
        pipe.to("cuda")
    pipe.vae.enable_tiling()
    return pipe


def main() -> None:
    """Draw one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev", help="repository or folder")
    parser.add_argument("--infinite-you", type=Path, required=True, help="folder of a published variant")
    parser.add_argument("--arcface", required=True, help="recognition_arcface_ir_se50.pth")
    parser.add_argument("--insightface", required=True, help="folder whose models/antelopev2 holds the detector")
    parser.add_argument("--prompt", default="a person, portrait, cinematic")
    parser.add_argument("--person", action="append", required=True, help="an image of each person, left to right")
    parser.add_argument("--pose", help="an image of a face in the wanted pose, for a single person")
    parser.add_argument("--preset", default="aes_stage2")
    parser.add_argument("--size", type=int, nargs=2, default=(1152, 864), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, help="those of the preset by default")
    parser.add_argument("--offload", choices=("none", "model", "group"), default="model")
    parser.add_argument("--out", type=Path, default=Path("infinite_you.png"))
    add_vram(parser)
    args = parser.parse_args()

    pipe, preset = load_pipeline(args), infinite_you_preset(args.preset)
    preset["num_inference_steps"] = args.steps or preset["num_inference_steps"]
    people = [load_image(person) for person in args.person]
    size = dict(zip(("height", "width"), args.size))
    call: dict[str, Any] = {**size, "generator": torch.Generator().manual_seed(0)}
    if len(people) == 1:
        pose = load_image(args.pose) if args.pose else None
        image = pipe(args.prompt, id_image=people[0], control_image=pose, **preset, **call).images[0]
    else:
        share = 1 / len(people)
        conditions = [
            InfiniteYouIdentity(
                pipe.controlnet,
                pipe.image_projector,
                id_image=person,
                face_encoder=pipe.face_encoder,
                scale=preset["controlnet_conditioning_scale"],
                start=preset["control_guidance_start"],
                end=preset["control_guidance_end"],
                guidance_scale=preset["id_guidance_scale"],
                region=(index * share, 0.0, (index + 1) * share, 1.0),
            )
            for index, person in enumerate(people)
        ]
        steps = {name: preset[name] for name in ("num_inference_steps", "guidance_scale")}
        image = pipe(args.prompt, conditions=conditions, **steps, **call).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
