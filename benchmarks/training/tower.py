"""A small vision tower for images as prompts, which learns to tell colours, shapes and backgrounds of training scenes.

A linear reading of an untrained one tells few shapes of scenes that are held out, so it is trained beforehand, as the
towers of the released adapters are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.checkpoints.writing import written_at_once
from diffusers_flux_ext.flux_shapes import Scene
from diffusers_flux_ext.inputs.vision import image_processor_for


FOLDER = "tower"
WIDTH, SIDE, PATCH = 128, 64, 16
SCENES, SEED, UPDATES, BATCH, RATE = 3000, 24, 800, 64, 1e-3
CLASSES = (tuple(flux_shapes.COLORS), flux_shapes.SHAPES, tuple(flux_shapes.BACKGROUNDS))


def untrained(width: int = WIDTH, seed: int = SEED) -> SiglipVisionModel:
    """Return a SigLIP tower of two layers and 16 patches, with random weights."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "image_size": SIDE, "patch_size": PATCH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=2, num_attention_heads=4, **sizes)).eval()


def read(scenes: Sequence[Scene], tower: SiglipVisionModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images as a tower takes them, `(scenes, 3, 64, 64)`, and the classes of what they show, `(scenes, 3)`."""
    images = [flux_shapes.render(scene) for scene in scenes]
    pixels = image_processor_for(tower)(images=images, return_tensors="pt").pixel_values
    shown = [(scene.objects[0].color, scene.objects[0].shape, scene.background) for scene in scenes]
    classes = [[names.index(name) for names, name in zip(CLASSES, each, strict=True)] for each in shown]
    return pixels, torch.tensor(classes)


def train(tower: SiglipVisionModel, scenes: Sequence[Scene], updates: int = UPDATES) -> nn.Linear:
    """Train a tower to tell what scenes show by its pooled output, and return the head that reads it.

    Args:
        tower (`SiglipVisionModel`): The tower; it is trained in place.
        scenes (`Sequence[Scene]`): Scenes of one object.
        updates (`int`): Number of updates.

    Returns:
        `nn.Linear`: From the pooled output to logits of all classes.
    """
    pixels, classes = read(scenes, tower)
    head = nn.Linear(tower.config.hidden_size, sum(map(len, CLASSES)))
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=updates)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(updates):
        part = torch.randint(len(scenes), (BATCH,), generator=generator)
        optimizer.zero_grad()
        losses = [
            nn.functional.cross_entropy(logits, wanted)
            for logits, wanted in zip(_logits(tower, head, pixels[part]), classes[part].T, strict=True)
        ]
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
    return head


def _logits(tower: SiglipVisionModel, head: nn.Linear, pixels: torch.Tensor) -> Sequence[torch.Tensor]:
    return head(tower(pixels).pooler_output).split([len(names) for names in CLASSES], dim=1)


def told(tower: SiglipVisionModel, head: nn.Linear, scenes: Sequence[Scene]) -> np.ndarray:
    """Return which colours, shapes and backgrounds are told right, `(scenes, 3)`, boolean."""
    pixels, classes = read(scenes, tower)
    with torch.no_grad():
        found = [logits.argmax(dim=1) for logits in _logits(tower, head, pixels)]
    return (torch.stack(found, dim=1) == classes).numpy()


def write_tower(folder: Path) -> None:
    """Train the tower on scenes that are not held out and write it, unless that was done before.

    Args:
        folder (`Path`): Where it goes.
    """
    if folder.exists():
        return
    rng = random.Random(SEED)
    tower = untrained()
    train(tower, [flux_shapes.sample_scene(rng, False, ("single",)) for _ in range(SCENES)])
    with written_at_once(folder) as path:
        tower.save_pretrained(path)
