"""`flux-ext demo --all`: what each of the modules in the package does, alone and all together, with a score."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxControlNetModel
from PIL import Image, ImageDraw, ImageFont

from .. import flux_shapes, tiny_flux_path
from ..methods.attribute_control.condition import AttributeValues
from ..methods.attribute_control.encoder import AttributeValueEncoder
from ..methods.control.condition import ControlNetImage
from ..methods.eligen.condition import EntityRegions
from ..pipeline.conditioned import FluxConditionedPipeline
from ..tiny import TINY_CALL, TINY_LORA
from .contact_sheet import INK, MARGIN, PAPER
from .images import save_image


SIDE, SCENES = flux_shapes.CANVAS_SIZE, 3
VALUES = (0.1, 0.5, 0.9)
# Radii in pixels that the value encoder's 0 and 1 stand for.
SMALLEST, LARGEST = 14.0, 44.0


@dataclass(frozen=True)
class Modules:
    """The pipeline and the modules of the package.

    Args:
        pipe (`FluxConditionedPipeline`): The tiny model with its LoRAs, all switched off.
        controlnet (`FluxControlNetModel`): Follows outlines.
        encoder (`AttributeValueEncoder`): Knows the size of objects.
    """

    pipe: Any
    controlnet: Any
    encoder: Any


@dataclass(frozen=True)
class Row:
    """A row of the sheet.

    Args:
        title (`str`): What is used.
        scenes (`Sequence[Scene]`): What the images should show.
        loras (`Sequence[str]`): LoRAs that are switched on.
        outlines (`bool`): Whether the ControlNet follows the outlines.
        regions (`bool`): Whether entities have regions.
        values (`Sequence[float]`): The size of each image's object, if it is set.
        score (`Callable`): Maps the images to a line of text.
    """

    title: str
    scenes: Sequence[flux_shapes.Scene]
    score: Callable[[Sequence[Image.Image], Row], str]
    loras: Sequence[str] = ()
    outlines: bool = False
    regions: bool = False
    values: Sequence[float] = field(default=())


def showcase(args: argparse.Namespace) -> Path:
    """Draw the same scenes without and with each module, and with all of them.

    Args:
        args (`argparse.Namespace`): `out`, `seed`.

    Returns:
        `Path`: the contact sheet.
    """
    # Tiny tensors gain little from threads, which can wait for each other for minutes on a busy machine.
    torch.set_num_threads(1)
    modules, rows = load_modules(), _rows(args.seed)
    drawn = [(row, _draw(modules, row, args.seed, plain=True), _draw(modules, row, args.seed)) for row in rows]
    for row, _, images in drawn:
        for index, image in enumerate(images):
            save_image(image, args.out / f"{row.title.split(':')[0].replace(' ', '_').lower()}_{index}.png")
    return save_image(_sheet(drawn), args.out / "all.png")


def load_modules() -> Modules:
    """Load the tiny model and all modules of the package.

    Returns:
        `Modules`
    """
    assets = Path(tiny_flux_path()).parent
    pipe = FluxConditionedPipeline.from_pretrained(tiny_flux_path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for name in ("eligen", "style", "size"):
        file = TINY_LORA if name == "eligen" else f"tiny_flux_{name}_lora.safetensors"
        pipe.load_lora_weights(assets, weight_name=file, adapter_name=name)
    return Modules(
        pipe,
        FluxControlNetModel.from_pretrained(assets / "tiny_flux_controlnet", torch_dtype=torch.float32),
        AttributeValueEncoder.from_pretrained(assets / "tiny_flux_size_encoder").to(torch.float32),
    )


def _rows(seed: int) -> list[Row]:
    rng = random.Random(seed)
    one = _not_gray(lambda: flux_shapes.sample_free_scene(rng, 1, True))
    two = [flux_shapes.sample_free_scene(rng, 2, True) for _ in range(SCENES)]
    centred = _not_gray(lambda: flux_shapes.sample_scene(rng, True, ("single",)))
    same = [replace(centred[0], objects=(replace(centred[0].objects[0], size=""),))] * SCENES
    return [
        Row("EliGen: a prompt for each region", two, _right_entities, ["eligen"], regions=True),
        Row("ControlNet: outlines", one, _offset, outlines=True),
        Row("Size: AttriCtrl, values 0.1, 0.5 and 0.9", same, _sizes, ["size"], values=VALUES),
        Row("Style: a LoRA of stripes", centred, _striped, ["style"]),
        Row(
            "All together: region, outlines, size and style",
            one,
            _everything,
            ["eligen", "size", "style"],
            outlines=True,
            regions=True,
            values=[(scene.objects[0].radius - SMALLEST) / (LARGEST - SMALLEST) for scene in one],
        ),
    ]


def _not_gray(draw: Callable[[], flux_shapes.Scene]) -> list[flux_shapes.Scene]:
    """Return scenes on which grey stripes can be seen."""
    scenes: list[flux_shapes.Scene] = []
    while len(scenes) < SCENES:
        scene = draw()
        if scene.background != "gray":
            scenes.append(scene)
    return scenes


def _draw(modules: Modules, row: Row, seed: int, plain: bool = False) -> list[Image.Image]:
    pipe = modules.pipe
    if row.loras and not plain:
        pipe.enable_lora()
        pipe.set_adapters(list(row.loras))
    else:
        pipe.disable_lora()
    conditions: list[Any] = []
    if row.regions and not plain:
        texts = [flux_shapes.entity_prompts(scene) for scene in row.scenes]
        conditions.append(EntityRegions(texts, [flux_shapes.entity_boxes(scene) for scene in row.scenes]))
    if row.outlines and not plain:
        outlines = [flux_shapes.render_outlines(scene) for scene in row.scenes]
        conditions.append(ControlNetImage(modules.controlnet, outlines))
    if row.values and not plain:
        conditions.append(AttributeValues(modules.encoder, {"size": list(row.values)}))
    options: dict[str, Any] = {**TINY_CALL, "negative_prompt": [""] * len(row.scenes)}
    prompts = [flux_shapes.caption(scene, random.Random(index)) for index, scene in enumerate(row.scenes)]
    images: list[Image.Image] = pipe(
        prompts, conditions=conditions, generator=torch.Generator().manual_seed(seed), **options
    ).images
    return images


def _right_entities(images: Sequence[Image.Image], row: Row) -> str:
    found = [
        entity
        for image, scene in zip(images, row.scenes)
        for entity in flux_shapes.score_entities(image, scene, flux_shapes.entity_boxes(scene))
    ]
    return f"{sum(each.color for each in found)} of {len(found)} colours in their boxes"


def _offset(images: Sequence[Image.Image], row: Row) -> str:
    distances = []
    for image, scene in zip(images, row.scenes):
        found, (left, top, right, bottom) = flux_shapes.detect_objects(image), scene.objects[0].extent
        if found:
            x, y = found[0].center
            distances.append(((x - (left + right) / 2) ** 2 + (y - (top + bottom) / 2) ** 2) ** 0.5)
    if not distances:
        return "no object"
    return f"{sum(distances) / len(distances):.0f} pixels from the outlines"


def _sizes(images: Sequence[Image.Image], row: Row) -> str:
    extents = [each[0].extent if each else (0.0,) * 4 for each in map(flux_shapes.detect_objects, images)]
    widths = [f"{right - left:.0f}" for left, _, right, _ in extents]
    return f"{', '.join(widths)} pixels wide"


def _striped(images: Sequence[Image.Image], row: Row) -> str:
    found = [flux_shapes.detect_objects(image) for image in images]
    count = sum(bool(each) and each[0].style == "striped" for each in found)
    return f"{count} of {len(images)} striped"


def _everything(images: Sequence[Image.Image], row: Row) -> str:
    return f"{_striped(images, row)}; {_offset(images, row)}"


def _sheet(drawn: Sequence[tuple[Row, Sequence[Image.Image], Sequence[Image.Image]]]) -> Image.Image:
    line, height = 20, SIDE + 3 * 20 + MARGIN
    page = Image.new("RGB", (MARGIN + 2 * SCENES * (SIDE + MARGIN), MARGIN + len(drawn) * height), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for place, (row, plain, images) in enumerate(drawn):
        top = MARGIN + place * height
        draw.text((MARGIN, top), row.title, fill=INK, font=ImageFont.load_default(16))
        for half, (name, shown) in enumerate((("without", plain), ("with", images))):
            start = MARGIN + half * SCENES * (SIDE + MARGIN)
            for index, image in enumerate(shown):
                page.paste(image, (start + index * (SIDE + MARGIN), top + line + 4))
            text = f"{name}: {row.score(shown, row)}"
            draw.text((start, top + line + SIDE + 8), text, fill=INK, font=font)
    return page
