"""Sheets of conditions: the same noise without and with each."""

from PIL import Image

from benchmarks.images.sheet import Cell, draw_boxes
from benchmarks.images.tiny import draw, held_out_scene, modules
from diffusers_flux_ext import AttributeValues, ControlNetImage, EntityRegions, InpaintRegion
from diffusers_flux_ext.cli.showcase import LARGEST, SMALLEST
from diffusers_flux_ext.flux_shapes import CANVAS_SIZE, Scene, entity_boxes, entity_prompts, render, render_outlines
from diffusers_flux_ext.methods.insert_anything.diptych import make_diptych


Rows = list[list[Cell]]


def regions_of(scene: Scene) -> EntityRegions:
    """Return the condition that gives every object of a scene its prompt and its box."""
    return EntityRegions(entity_prompts(scene), entity_boxes(scene))


def eligen() -> Rows:
    """Draw two scenes by their prompt alone, and with a prompt for each region."""
    rows = []
    for seed, objects in ((14, 2), (18, 3)):
        scene, prompt = held_out_scene(seed, objects)
        boxes = draw_boxes(entity_boxes(scene))
        rows.append(
            [
                Cell(draw(prompt), "prompt alone"),
                Cell(boxes, "regions"),
                Cell(draw(prompt, [regions_of(scene)]), "without the LoRA"),
                Cell(draw(prompt, [regions_of(scene)], ["eligen"]), "EliGen"),
            ]
        )
    return rows


def controlnet() -> Rows:
    """Draw a scene with outlines at several scales, and in a region."""
    scene, prompt = held_out_scene(5, 1)
    outlines, model = render_outlines(scene), modules().controlnet
    row = [Cell(outlines.convert("RGB"), "outlines")]
    for scale in (0.0, 0.5, 1.0):
        row.append(Cell(draw(prompt, [ControlNetImage(model, outlines, scale=scale)]), f"scale={scale}"))
    return [row]


def attribute_control() -> Rows:
    """Draw one scene with several values of its object's size."""
    _, prompt = held_out_scene(13, 1)
    row = [Cell(draw(prompt), "no value")]
    for value in (0.1, 0.4, 0.7, 1.0):
        condition = AttributeValues(modules().encoder, {"size": value})
        row.append(Cell(draw(prompt, [condition], ["size"]), f"size {value}"))
    return [row]


def inpainting() -> Rows:
    """Draw a part of an image anew, by the prompt alone and with a prompt for a region."""
    scene, _ = held_out_scene(14, 2)
    photo, box = render(scene), entity_boxes(scene)[0]
    background = f"a {scene.background} background"
    region, entity = InpaintRegion(photo, box), EntityRegions(["a green star"], [box])
    plain, with_entity = draw(background, [region]), draw(background, [region, entity], ["eligen"])
    return [
        [
            Cell(photo, "image"),
            Cell(draw_boxes([box], photo), "mask"),
            Cell(plain, f'"{background}"'),
            Cell(with_entity, '"a green star" there'),
        ]
    ]


def composition() -> Rows:
    """Add one condition after the other to a scene."""
    scene, prompt = held_out_scene(5, 1)
    size = (scene.objects[0].radius - SMALLEST) / (LARGEST - SMALLEST)
    steps = [
        ("+ EliGen", regions_of(scene), "eligen"),
        ("+ ControlNet", ControlNetImage(modules().controlnet, render_outlines(scene)), None),
        (f"+ size {size:.1f}", AttributeValues(modules().encoder, {"size": size}), "size"),
        ("+ style LoRA", None, "style"),
    ]
    row = [Cell(draw(prompt), "prompt alone")]
    for end, (title, *_) in enumerate(steps, start=1):
        conditions = [condition for _, condition, _ in steps[:end] if condition is not None]
        loras = [lora for *_, lora in steps[:end] if lora is not None]
        row.append(Cell(draw(prompt, conditions, loras), title))
    return [row]


def insert_anything() -> Rows:
    """Show what the model gets; the weights that draw are not in the package."""
    (source, _), (reference, _) = held_out_scene(14, 2), held_out_scene(16, 1)
    image, box = render(source), entity_boxes(source)[0]
    item = entity_boxes(reference)[0]
    diptych = make_diptych(image, box, render(reference), item, size=CANVAS_SIZE)
    mask: Image.Image = diptych.mask.convert("RGB")
    return [
        [Cell(draw_boxes([box], image), "source and mask"), Cell(draw_boxes([item], render(reference)), "reference")],
        [Cell(diptych.image, "canvas: the object, the source"), Cell(mask, "white is drawn")],
    ]
