"""The entries that flags are added to: those of a job file or an image, or the defaults of a model."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...pipeline.usual_call import call_of, has_guidance
from ...tiny import TINY, TINY_LORA
from ..errors import CommandLineError
from .build import with_flags
from .checks import FORMATS


logger = logging.getLogger(__name__)
TOKEN_SIDE = 16


@dataclass(frozen=True)
class Draft:
    """A job before it is checked.

    Attributes:
        content (`dict[str, Any]`): Its entries.
        base (`Path`): The folder that its files are relative to.
        stored (`Callable`): Returns the content of an input by its SHA-256; raises `LookupError`.
    """

    content: dict[str, Any]
    base: Path
    stored: Callable[[str], bytes]


def draft(args: argparse.Namespace) -> Draft:
    """Make a job of a command line.

    Args:
        args (`argparse.Namespace`): The command line.

    Returns:
        `Draft`

    Raises:
        CommandLineError: if flags do not fit each other.
        JobError: if the file of --job is not a job.
        OSError: if it cannot be read.
    """
    if args.job is None:
        base = Path() if args.save_job is None else args.save_job.parent
        content = _completed(with_flags(_defaults(args), args, base), args)
    else:
        from ...jobs import read_job

        base = args.job.parent
        content = with_flags(read_job(args.job).to_dict(), args, base)
    _round_size(content, args)
    _count_images(content, args)
    content["output"] = {**content.get("output", {}), "format": FORMATS[args.out.suffix.lower()]}
    return Draft(content, base, _finder(content, [base, Path()]))


def _defaults(args: argparse.Namespace) -> dict[str, Any]:
    model = args.model or TINY
    found: dict[str, Any] = {"version": 1, "model": {"path": model}, "call": {**call_of(model), "seed": 0}}
    if args.lora is None and model == TINY and args.entity:
        found["loras"] = [{"path": TINY, "weight_name": TINY_LORA}]
    if model == TINY and args.control:
        found["conditions"] = [{"type": "ControlNetImage", "controlnet": {"path": TINY}} for _ in args.control]
    return found


def _completed(content: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Add what follows from other entries, and warn of what has no effect."""
    call = content["call"]
    if call.get("true_cfg_scale", 1) > 1:
        call.setdefault("negative_prompt", "")
    else:
        call.pop("negative_prompt", None)
    # `none` stands for no LoRA at all.
    content["loras"] = [lora for lora in content.get("loras", ()) if lora["path"] != "none"]
    if args.entity and not content["loras"]:
        logger.warning("Entities are hardly followed without an EliGen LoRA, for example DiffSynth-Studio/Eligen.")
    if args.guidance is not None and not has_guidance(content["model"]["path"]):
        logger.warning(f"`guidance_scale={args.guidance}` has no effect: --model {args.model} is not distilled.")
    return content


def _round_size(content: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Round the size down to whole tokens, with a warning if that changes it."""
    if args.size is None:
        return
    width, height = (side // TOKEN_SIDE * TOKEN_SIDE for side in args.size)
    if (width, height) != args.size:
        logger.warning(
            f"--size {args.size[0]}x{args.size[1]} becomes {width}x{height}: sides are multiples of {TOKEN_SIDE} "
            f"pixels."
        )
    content["call"].update(width=width, height=height)


def _count_images(content: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Draw an image for each seed."""
    seeds = content["call"].get("seed")
    if args.seed is None or not isinstance(seeds, list):
        return
    if args.num_images not in (None, len(seeds)):
        raise CommandLineError(
            f"--num-images is {args.num_images}, but --seed has {len(seeds)}; give one for each image"
        )
    content["call"]["num_images_per_prompt"] = len(seeds)


def _finder(content: Any, folders: list[Path]) -> Callable[[str], bytes]:
    """Return a function that finds inputs which a job names by hash: beside the job, or in the working directory."""
    paths = {entry["sha256"]: [folder / entry["file"] for folder in folders] for entry in _stored(content)}

    def find(digest: str) -> bytes:
        for path in paths.get(digest, ()):
            if path.is_file() and hashlib.sha256(data := path.read_bytes()).hexdigest() == digest:
                return data
        raise LookupError(digest)

    return find


def _stored(content: Any) -> Iterator[Mapping[str, str]]:
    if isinstance(content, Mapping):
        if content.keys() == {"file", "sha256"}:
            yield content
        for value in content.values():
            yield from _stored(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _stored(value)
