"""What the commands do."""

import argparse
import os
import random
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from PIL import Image

from .. import flux_shapes
from ..checkpoints.model_configs import building
from ..checkpoints.pipeline_folders import check_pipeline_folder
from ..checkpoints.writing import check_target, written_at_once
from ..methods.eligen.pipeline import FluxEliGenPipeline
from ..pipeline.call_inputs import SCHNELL_TEXT_TOKENS, is_schnell
from ..tiny import TINY, TINY_CALL, TINY_LORA, named_model
from .contact_sheet import contact_sheet
from .devices import best_device


logger = logging.get_logger(__name__)

SCHNELL_CALL: dict[str, Any] = {"num_inference_steps": 4, "max_sequence_length": SCHNELL_TEXT_TOKENS}
TOKEN_SIDE = 16
DEMO_ENTITIES = (2, 3, 2, 3)


def demo(args: argparse.Namespace) -> Path:
    """Draw scenes that the tiny model has not seen, with and without their entities.

    Args:
        args (`argparse.Namespace`): `out`, `seed`.

    Returns:
        `Path`: the contact sheet.
    """
    # Tiny tensors gain little from threads, which can wait for each other for minutes on a busy machine.
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
        save_image(image, args.out / f"scene_{index}.png")
    return save_image(sheet, args.out / "contact_sheet.png")


def generate(args: argparse.Namespace) -> Path:
    """Draw one image.

    Args:
        args (`argparse.Namespace`): The arguments of `flux-ext generate`.

    Returns:
        `Path`: the image.
    """
    if args.out.exists():
        check_target(args.out, overwrite=True)
    pipe = load_pipeline(
        args.model, args.lora, args.lora_weight_name, args.device, args.offload, with_regions=bool(args.entity)
    )
    call: dict[str, Any] = dict(TINY_CALL) if args.model == TINY else dict(SCHNELL_CALL) if is_schnell(pipe) else {}
    given = {
        "num_inference_steps": args.steps,
        "max_sequence_length": args.text_tokens,
        "true_cfg_scale": args.true_cfg,
        "negative_prompt": args.negative_prompt,
        **_whole_tokens(args.size),
    }
    call |= {name: value for name, value in given.items() if value is not None}
    if call.get("true_cfg_scale", 1) > 1:
        call.setdefault("negative_prompt", "")
    else:
        call.pop("negative_prompt", None)
    if args.guidance is not None:
        call["guidance_scale"] = args.guidance
        if not pipe.transformer.config.guidance_embeds:
            logger.warning(f"`guidance_scale={args.guidance}` has no effect: --model {args.model} is not distilled.")
    if args.entity:
        call |= {"entity_prompts": [entity.text for entity in args.entity]}
        call |= {"entity_masks": [entity.box for entity in args.entity]}
    # The pipeline's own checks are clear; other errors of a library come from odd configs or weights.
    clear = (OSError, ValueError, torch.OutOfMemoryError)
    with building(args.model, passing=clear, what="a FLUX.1 pipeline that can draw"):
        images = draw(pipe, args.seed, prompt=args.prompt, **call)
    return save_image(images[0], args.out)


def _whole_tokens(size: tuple[int, int] | None) -> dict[str, int]:
    """Round the size down to whole tokens, with a warning if that changes it."""
    if size is None:
        return {}
    width, height = (side // TOKEN_SIDE * TOKEN_SIDE for side in size)
    if (width, height) != size:
        logger.warning(
            f"--size {size[0]}x{size[1]} becomes {width}x{height}: sides are multiples of {TOKEN_SIDE} pixels."
        )
    return {"width": width, "height": height}


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
        with_regions (`bool`): Whether entities are drawn; `tiny` then loads its own LoRA.

    Returns:
        `FluxEliGenPipeline`
    """
    device = device or best_device()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    path = named_model(model)
    if os.path.isdir(path):
        check_pipeline_folder(path)
    try:
        with building(path, passing=(OSError,), what="a FLUX.1 pipeline"):
            pipe = FluxEliGenPipeline.from_pretrained(path, dtype=dtype)
    except OSError as error:
        raise OSError(f"--model {model} cannot be loaded: {error}") from error
    if lora is None and model == TINY and with_regions:
        lora = os.path.join(os.path.dirname(named_model(TINY)), TINY_LORA)
    if lora is not None and lora != "none":
        pipe.load_lora_weights(lora, weight_name=lora_weight_name)
    elif with_regions:
        logger.warning("Entities are hardly followed without an EliGen LoRA, for example DiffSynth-Studio/Eligen.")
    with building(path, passing=(OSError, ValueError, torch.OutOfMemoryError), what="a FLUX.1 pipeline"):
        _place(pipe, device, offload)
    return pipe


def _place(pipe: FluxEliGenPipeline, device: str, offload: str) -> None:
    if device == "cpu":
        if offload != "none":
            logger.warning(f"`offload={offload}` has no effect without an accelerator: everything runs on the CPU.")
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)


def save_image(image: Image.Image, path: Path) -> Path:
    """Write an image whole or not at all.

    Args:
        image (`PIL.Image.Image`): The image.
        path (`Path`): Target file; folders are created.

    Returns:
        `Path`: the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_at_once(path) as temporary:
        image.save(temporary)
    return path
