"""What the commands do."""

import argparse
import os
import random
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import logging
from PIL import Image

from .. import flux_shapes, tiny_flux_path
from ..checkpoints.model_configs import building
from ..checkpoints.pipeline_folders import check_pipeline_folder
from ..checkpoints.writing import check_target, written_at_once
from ..methods.eligen.pipeline import FluxEliGenPipeline
from .contact_sheet import contact_sheet
from .main import TINY


logger = logging.get_logger(__name__)

TINY_LORA = "tiny_flux_eligen_lora.safetensors"
# The tiny model was trained on short texts and without guidance distillation.
TINY_CALL: dict[str, Any] = {
    "height": 128,
    "width": 128,
    "num_inference_steps": 20,
    "max_sequence_length": 32,
    "true_cfg_scale": 2.0,
    "negative_prompt": "",
}
DEMO_ENTITIES = (2, 3, 2, 3)


def demo(args: argparse.Namespace) -> Path:
    """Draw scenes that the tiny model has not seen, with and without their entities.

    Args:
        args (`argparse.Namespace`): `out`, `seed`.

    Returns:
        `Path`: the contact sheet.
    """
    # Tiny tensors gain little from threads, which on a busy machine wait for each other for minutes.
    torch.set_num_threads(1)
    pipe = load_pipeline(TINY, None, None, "cpu", "none", with_regions=True)
    rng = random.Random(args.seed)
    scenes = [flux_shapes.sample_free_scene(rng, count, held_out=True) for count in DEMO_ENTITIES]
    prompts = [flux_shapes.background_caption(scene) for scene in scenes]
    entities = [flux_shapes.entity_prompts(scene) for scene in scenes]
    boxes = [flux_shapes.entity_boxes(scene) for scene in scenes]
    spoken = [f"{', '.join(texts)} on {prompt}" for texts, prompt in zip(entities, prompts)]
    pipe.disable_lora()
    without = draw(pipe, args.seed, prompt=spoken, **TINY_CALL)
    pipe.enable_lora()
    results = draw(pipe, args.seed, prompt=prompts, entity_prompts=entities, entity_masks=boxes, **TINY_CALL)
    sheet = contact_sheet(spoken, without, prompts, entities, boxes, results)
    for index, image in enumerate(results):
        save_picture(image, args.out / f"scene_{index}.png")
    return save_picture(sheet, args.out / "contact_sheet.png")


def generate(args: argparse.Namespace) -> Path:
    """Draw one picture.

    Args:
        args (`argparse.Namespace`): The arguments of `flux-ext generate`.

    Returns:
        `Path`: the picture.
    """
    if args.out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {args.out} has no picture's ending; use for example {args.out.with_suffix('.png')}.")
    if args.out.exists():
        check_target(args.out, overwrite=True)
    pipe = load_pipeline(
        args.model, args.lora, args.lora_weight_name, args.device, args.offload, with_regions=bool(args.entity)
    )
    call: dict[str, Any] = dict(TINY_CALL) if args.model == TINY else {}
    given = {
        "num_inference_steps": args.steps,
        "max_sequence_length": args.text_tokens,
        "true_cfg_scale": args.true_cfg,
        "negative_prompt": args.negative_prompt,
        "width": args.size and args.size[0],
        "height": args.size and args.size[1],
    }
    call |= {name: value for name, value in given.items() if value is not None}
    if call.get("true_cfg_scale", 1) > 1:
        call.setdefault("negative_prompt", "")
    if args.entity:
        call |= {"entity_prompts": [entity.text for entity in args.entity]}
        call |= {"entity_masks": [entity.box for entity in args.entity]}
    # What the pipeline checks is clear; a library that runs into something else has got odd configs or weights.
    clear = (OSError, ValueError, torch.OutOfMemoryError)
    with building(args.model, passing=clear, what="a FLUX.1 pipeline that can draw"):
        images = draw(pipe, args.seed, prompt=args.prompt, guidance_scale=args.guidance, **call)
    return save_picture(images[0], args.out)


def draw(pipe: FluxEliGenPipeline, seed: int, **call: Any) -> list[Image.Image]:
    """Call a pipeline with noise from a seed.

    Args:
        pipe (`FluxEliGenPipeline`): The pipeline.
        seed (`int`): Seed of the noise, drawn on the CPU.
        call: The pipeline's arguments.

    Returns:
        `list[PIL.Image.Image]`
    """
    return pipe(**call, generator=torch.Generator().manual_seed(seed), return_dict=False)[0]


def load_pipeline(
    model: str,
    lora: str | None,
    lora_weight_name: str | None,
    device: str | None,
    offload: str,
    with_regions: bool,
) -> FluxEliGenPipeline:
    """Load a FLUX.1 repository as [`FluxEliGenPipeline`], with a LoRA and on a device.

    Args:
        model (`str`): Repository, folder, or `"tiny"`.
        lora (`str`, *optional*): LoRA; `"none"` for no LoRA.
        lora_weight_name (`str`, *optional*): File of the LoRA's repository.
        device (`str`, *optional*): Torch device.
        offload (`str`): `"none"`, `"model"` or `"sequential"`.
        with_regions (`bool`): Whether entities are drawn, for which tiny's own LoRA is loaded.

    Returns:
        `FluxEliGenPipeline`
    """
    quiet_libraries()
    device = device or best_device()
    path = tiny_flux_path() if model == TINY else model
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if os.path.isdir(path):
        check_pipeline_folder(path)
    with building(path, passing=(OSError,), what="a FLUX.1 pipeline"):
        pipe = FluxEliGenPipeline.from_pretrained(path, dtype=dtype)
    if lora is None and model == TINY and with_regions:
        lora = os.path.join(os.path.dirname(tiny_flux_path()), TINY_LORA)
    if lora is not None and lora != "none":
        _check_local_file(lora)
        pipe.load_lora_weights(lora, weight_name=lora_weight_name)
    elif with_regions:
        logger.warning("Entities are hardly followed without an EliGen LoRA, for example DiffSynth-Studio/Eligen.")
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def _check_local_file(path: str) -> None:
    """Something that can only be a local path must exist; otherwise diffusers would look for a repository."""
    looks_local = os.path.isabs(path) or path.startswith(".") or path.endswith((".safetensors", ".bin"))
    if looks_local and not os.path.exists(path):
        raise FileNotFoundError(f"There is no LoRA at {path}.")


def quiet_libraries() -> None:
    """Keep the libraries' notes on loading off the terminal; this package's own warnings still show."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def best_device() -> str:
    """The first of cuda, mps and cpu that there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def save_picture(image: Image.Image, path: Path) -> Path:
    """Write a picture whole or not at all.

    Args:
        image (`PIL.Image.Image`): The picture.
        path (`Path`): Where to; folders are made.

    Returns:
        `Path`: the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_at_once(path) as temporary:
        image.save(temporary)
    return path
