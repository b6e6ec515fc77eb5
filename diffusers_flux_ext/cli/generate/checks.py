"""Checks of `flux-ext generate` that need no torch."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from ...inputs.boxes import box_in_pixels
from ...tiny import TINY, TINY_CALL
from ..checks import check_folder, check_model, check_source
from ..errors import CommandLineError
from .plain import check_packages
from .table import IMAGE, all_flags


FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
JOB_FILES = (".yaml", ".yml", ".json")
_DEVICE = re.compile(r"[a-z]+(:\d+)?")
# What a flag has no effect without.
NEEDS = {
    "lora_weight_name": "lora",
    "base": "model",
    "controlnet": "control",
    "control_scale": "control",
    "reference_scale": "reference",
    "strength": "image",
    "inpaint_mask": "image",
    "fill_mask": "image",
    "ip_adapter": "ip_adapter_image",
    "ip_adapter_scale": "ip_adapter_image",
    "ip_adapter_encoder": "ip_adapter_image",
    "redux": "redux_image",
    "redux_scale": "redux_image",
    "redux_encoder": "redux_image",
    "identity_net": "identity",
    "identity_projector": "identity",
    "identity_region": "identity",
    "attribute_encoder": "attribute",
}


def check_generate(args: argparse.Namespace) -> None:
    """Check `flux-ext generate`; raises [`CommandLineError`]."""
    check_packages(args)
    if args.job is None:
        _check_alone(args)
    elif not args.job.is_file():
        raise CommandLineError(f"--job {args.job}: there is no such file")
    if args.save_job is not None:
        _check_saved_job(args)
    _check_image(args.out)
    if args.model is not None:
        check_model(args.model)
    for lora in args.lora or ():
        if lora["path"] != "none":
            check_source("--lora", lora["path"])
    if args.device is not None and not _DEVICE.fullmatch(args.device):
        raise CommandLineError(f"--device {args.device} is not a device; give for example cuda, cuda:1, mps or cpu")
    _check_images(args)
    _check_boxes(args)


def _check_images(args: argparse.Namespace) -> None:
    for flag in all_flags():
        if flag.metavar != IMAGE:
            continue
        given = getattr(args, flag.dest) or []
        for path in [given] if isinstance(given, str) else given:
            if not path.startswith("data:") and not os.path.isfile(path):
                raise CommandLineError(f"{flag.name} {path}: there is no such image")


def _check_alone(args: argparse.Namespace) -> None:
    """Check flags that a job file could complete."""
    if args.prompt is None:
        raise CommandLineError("--prompt is missing: say what to draw, or give a --job")
    for name, needed in NEEDS.items():
        if getattr(args, name) is not None and getattr(args, needed) is None:
            raise CommandLineError(f"--{name.replace('_', '-')} has no effect without --{needed.replace('_', '-')}")
    tiny_cfg = TINY_CALL["true_cfg_scale"] if args.model in (None, TINY) else 1.0
    if args.negative_prompt is not None and (tiny_cfg if args.true_cfg is None else args.true_cfg) <= 1:
        raise CommandLineError("--negative-prompt has no effect without --true-cfg above 1")


def _check_saved_job(args: argparse.Namespace) -> None:
    path: Path = args.save_job
    if path.suffix.lower() not in JOB_FILES:
        raise CommandLineError(f"--save-job {path} does not end in {', '.join(JOB_FILES)}")
    if path.is_dir() or not path.parent.is_dir():
        raise CommandLineError(f"--save-job {path} cannot be written: it is a folder, or its folder does not exist")
    if args.job is not None and args.job.parent.resolve() != path.parent.resolve():
        raise CommandLineError(
            f"--save-job {path} is not in the folder of --job {args.job}, to which the job's files are relative"
        )


def _check_image(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise CommandLineError(
            f"--out {path} does not end in an image suffix ({', '.join(FORMATS)}); use for example "
            f"{path.with_suffix('.png')}"
        )
    if path.is_dir():
        raise CommandLineError(f"--out {path} is a folder; give the file to write")
    check_folder("--out", path.parent)


def _check_boxes(args: argparse.Namespace) -> None:
    if args.size is None and (args.job is not None or args.model not in (None, TINY)):
        return  # The size is the job's or the model's own.
    width, height = args.size or (TINY_CALL["width"], TINY_CALL["height"])
    regions = [(f"--entity {text!r}", region) for text, region in args.entity or ()]
    regions += [("--inpaint-mask", args.inpaint_mask), ("--fill-mask", args.fill_mask)]
    regions += [("--identity-region", region) for region in args.identity_region or ()]
    for flag, region in regions:
        if isinstance(region, str) and not os.path.isfile(region):
            raise CommandLineError(f"{flag}: there is no mask {region}")
        try:
            if isinstance(region, list):
                # The canvas has whole tokens.
                box_in_pixels(tuple(region), width // 16 * 16, height // 16 * 16)
        except ValueError as error:
            raise CommandLineError(f"{flag}: {error}") from None
