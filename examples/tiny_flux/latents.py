"""Stage "latents": encode every training scene once."""

import random

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.canvas import encode_image, pack_latents
from diffusers_flux_ext.training import atomic_path

from .models import load_vae
from .settings import Settings


_NAMED, _FREE = "named", "free"
KINDS: tuple[str, ...] = (_NAMED, "free_1", "free_2", "free_3")
"""Kinds of training scenes: named layouts of one and two objects, and one to three objects at free places."""

_BATCH = 32


def encode_latents(settings: Settings) -> None:
    """Render and encode the training scenes of every kind.

    Args:
        settings (`Settings`): The run; writes its `latents` files.
    """
    vae = load_vae(settings)
    for kind in KINDS:
        if not settings.latents(kind).exists():
            latents = _encode(settings, vae, kind)
            with atomic_path(settings.latents(kind)) as file:
                save_file({"latents": latents}, file)


def load_latents(settings: Settings, kind: str) -> tuple[torch.Tensor, list[flux_shapes.Scene]]:
    """Return encoded scenes and what they show.

    Args:
        settings (`Settings`): The run.
        kind (`str`): One of `KINDS`.

    Returns:
        `tuple[torch.Tensor, list[Scene]]`: packed latents `(count, 64, 64)` in half precision, and the scenes.
    """
    return load_file(settings.latents(kind))["latents"], training_scenes(settings, kind)


def training_scenes(settings: Settings, kind: str) -> list[flux_shapes.Scene]:
    """Return the scenes of one kind, none of them held out; the seed fixes them, so that they need no file.

    Args:
        settings (`Settings`): The run.
        kind (`str`): One of `KINDS`.

    Returns:
        `list[Scene]`
    """
    rng = random.Random(f"{settings.seed}/{kind}")
    if kind == _NAMED:
        # Half of them show one object, half two: pairs are learned last.
        layouts = [("single", "pos"), ("two",)]
        return [
            flux_shapes.sample_scene(rng, held_out=False, layouts=layouts[index % 2])
            for index in range(settings.amounts.latents)
        ]
    count = int(kind.removeprefix(f"{_FREE}_"))
    return [flux_shapes.sample_free_scene(rng, count, held_out=False) for _ in range(settings.amounts.latents // 2)]


@torch.no_grad()
def _encode(settings: Settings, vae: torch.nn.Module, kind: str) -> torch.Tensor:
    scenes, parts = training_scenes(settings, kind), []
    for start in tqdm(range(0, len(scenes), _BATCH), desc=f"latents {kind}"):
        images = np.stack([np.asarray(flux_shapes.render(scene)) for scene in scenes[start : start + _BATCH]])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(pack_latents(encode_image(vae, pixels.to(settings.device))).half().cpu())
    return torch.cat(parts)
