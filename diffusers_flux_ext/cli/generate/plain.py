"""`flux-ext generate` without the packages that jobs need: prompts, entities in boxes, and LoRAs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...tiny import named_lora, named_model
from ..errors import CommandLineError
from ..extras import missing_for_jobs
from .table import all_flags


# The flags that are drawn from without a job.
PLAIN = frozenset(
    "model prompt negative_prompt steps size guidance true_cfg text_tokens seed num_images entity lora "
    "lora_weight_name offload".split()
)


def check_packages(args: argparse.Namespace) -> None:
    """Raise a [`CommandLineError`] if packages are missing that flags of this command line need.

    Args:
        args (`argparse.Namespace`): The command line.
    """
    missing = missing_for_jobs()
    if not missing:
        return
    names = [flag.dest for flag in all_flags()] + ["condition", "set", "job", "save_job", "dry_run"]
    given = [f"--{name.replace('_', '-')}" for name in names if name not in PLAIN and getattr(args, name)]
    given += ["--entity TEXT@MASK" for _, region in args.entity or () if isinstance(region, str)]
    if given:
        raise CommandLineError(
            f"{', '.join(given)} needs {' and '.join(missing)}: `pip install 'diffusers-flux-ext[jobs]'`"
        )


def draw_plainly(content: Mapping[str, Any], args: argparse.Namespace) -> list[Path]:
    """Draw, with the pixels of the job that the flags describe, but without that job in the images.

    Args:
        content (`Mapping[str, Any]`): The entries of the job.
        args (`argparse.Namespace`): The command line.

    Returns:
        `list[Path]`: the images.
    """
    from ...checkpoints.writing import numbered
    from ..images import save_image

    images = _pipeline(content, args)(**_call(content)).images
    paths = [args.out.parent / numbered(args.out.name, index, len(images)) for index in range(len(images))]
    return [save_image(image, path) for image, path in zip(images, paths)]


def _pipeline(content: Mapping[str, Any], args: argparse.Namespace) -> Any:
    import torch

    from ...checkpoints.pipeline_folders import check_pipeline_folder
    from ...lora.loading.load import load_lora
    from ...pipeline.conditioned import FluxConditionedPipeline
    from ...pipeline.placing import place_pipeline
    from ..devices import best_device

    device = args.device or best_device()
    path = named_model(content["model"]["path"])
    if os.path.isdir(path):
        check_pipeline_folder(path)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    pipe = FluxConditionedPipeline.from_pretrained(path, dtype=dtype)
    for index, lora in enumerate(content["loras"]):
        source = named_lora(lora["path"], lora.get("weight_name"))
        # What stands for `tiny` is a file already.
        named = None if source != lora["path"] else lora.get("weight_name")
        hub = {} if named is None else {"weight_name": named}
        load_lora(pipe, source, f"lora_{index}", lora.get("weight", 1.0), **hub)
    offload = content.get("memory", {}).get("offload", "none") if device != "cpu" else "none"
    place_pipeline(pipe, device, offload)
    return pipe


def _call(content: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from ...methods.eligen.condition import EntityRegions

    call = dict(content["call"])
    seeds = call.pop("seed")
    made = [torch.Generator().manual_seed(seed) for seed in (seeds if isinstance(seeds, list) else [seeds])]
    call["generator"] = made if isinstance(seeds, list) else made[0]
    entities = [entry for entry in content.get("conditions", ()) if entry["type"] == EntityRegions.__name__]
    call["conditions"] = [
        EntityRegions(each["prompts"], [tuple(region) for region in each["masks"]]) for each in entities
    ]
    return call
