"""Every kind of training lowers the loss of samples that it has not seen, and only because of its conditions.

The worlds are the simplest that need a condition: a red circle on white whose place or size no prompt names. The whole
trainings and their scores are those of benchmarks/training.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from benchmarks.training.drawn import TABLE
from benchmarks.training.tasks import Task, TaskWorld
from benchmarks.training.tower import untrained
from benchmarks.training.worlds import RADII, World, crossed, striped
from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.flux_shapes import Scene, ShapeObject
from tests.training.proofs.short import falls, prepare, train_all_seeds


pytestmark = [pytest.mark.slow, pytest.mark.training]
ENOUGH = 3.0
COUNT = 84
CIRCLE = ShapeObject("circle", "red", "", (64.0, 64.0), 24.0)


def beside(rng: random.Random, held_out: bool) -> Scene:
    """A circle on the left or on the right."""
    center = (rng.choice((32.0, 96.0)) + rng.uniform(-4, 4), 64 + rng.uniform(-4, 4))
    return Scene("white", (replace(CIRCLE, center=center),))


def small_or_large(rng: random.Random, held_out: bool) -> Scene:
    """A circle in the middle, small or large."""
    return Scene("white", (replace(CIRCLE, radius=rng.choice(RADII)),))


def blue_beside(rng: random.Random, held_out: bool) -> Task:
    """Make a circle red; the blue one that is given is on the left or on the right."""
    scene = beside(rng, held_out)
    before = replace(scene, objects=(replace(scene.objects[0], color="blue"),))
    return Task(scene, "make it red", {"kontext_images": flux_shapes.render(before)})


def hole_below(rng: random.Random, held_out: bool) -> Task:
    """Fill a hole below a circle, which is on the left or on the right, with nothing."""
    scene = beside(rng, held_out)
    mask = Image.new("L", (flux_shapes.CANVAS_SIZE,) * 2)
    ImageDraw.Draw(mask).rectangle((16, 100, 112, 124), fill=255)
    given = {"flux_fill_image": flux_shapes.render(scene), "flux_fill_mask": mask}
    return Task(scene, flux_shapes.caption(scene, rng), given)


def red_or_blue(rng: random.Random, held_out: bool) -> Task:
    """Draw a circle of the colour that it has in a given image."""
    item = replace(CIRCLE, color=rng.choice(("red", "blue")), radius=rng.uniform(24, 32))
    scene = Scene("white", (item,))
    return Task(scene, flux_shapes.background_caption(scene), {"image_prompt": flux_shapes.render(scene)})


class Boxes(World):
    """A world whose rows name the box of each object."""

    def columns(self, scene: Scene) -> dict[str, Any]:
        boxes = [list(box) for box in flux_shapes.entity_boxes(scene)]
        return {"eligen_entity_prompts": flux_shapes.entity_prompts(scene), "boxes": boxes, **super().columns(scene)}


WORLDS = {
    "beside": Boxes(COUNT, 2, beside),
    "plain": World(COUNT, 3),
    "stripes": World(COUNT, 4, render=striped),
    "sizes": World(COUNT, 5, small_or_large),
    "crosses": World(COUNT, 6, crossed),
    "edits": TaskWorld(COUNT, 7, blue_beside),
    "holes": TaskWorld(COUNT, 8, hole_below),
    "image_prompts": TaskWorld(COUNT, 9, red_or_blue),
}
COLUMNS = "data.sources.0.file_columns=[image,controlnet_image]"
BOXES = "conditions.0.inputs={prompts: eligen_entity_prompts, masks: boxes}"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    for name, world in WORLDS.items():
        world.write(folder / name)
    return {name: folder / name / TABLE for name in WORLDS}


@pytest.mark.parametrize(
    ("recipe", "world", "updates", "changes"),
    [
        ("tiny_controlnet", "beside", 24, ["optimizer.lr=0.004", COLUMNS]),
        ("tiny_size", "sizes", 14, ["optimizer.lr=0.005"]),
        ("tiny_eligen_lora", "beside", 18, ["optimizer.lr=0.004", "conditions.0.dropout=0", COLUMNS, BOXES]),
        ("tiny_marks_and_size", "sizes", 16, ["optimizer.lr=0.004", "loss.levels.shift=3"]),
        ("tiny_edits", "edits", 7, ["optimizer.lr=0.006"]),
        ("tiny_fill", "holes", 7, ["optimizer.lr=0.004"]),
    ],
)
def test_the_conditions_lower_the_held_out_loss(
    worlds: dict[str, Path], tmp_path: Path, recipe: str, world: str, updates: int, changes: list[str]
) -> None:
    losses = train_all_seeds(recipe, tmp_path, [worlds[world]], updates, *changes)
    assert falls(losses.before, losses.after) > ENOUGH
    assert falls(losses.shuffled, losses.after) > ENOUGH


@pytest.mark.full
@pytest.mark.parametrize(("recipe", "updates"), [("tiny_ip_adapter", 24), ("tiny_redux", 20)])
def test_an_image_as_a_prompt_lowers_the_held_out_loss(
    worlds: dict[str, Path], tmp_path: Path, recipe: str, updates: int
) -> None:
    """An untrained encoder tells red from blue already."""
    untrained().save_pretrained(tmp_path / "tower")
    changes = [f"conditions.0.modules.image_encoder.path={tmp_path / 'tower'}", "optimizer.lr=0.004"]
    losses = train_all_seeds(recipe, tmp_path, [worlds["image_prompts"]], updates, *changes)
    assert falls(losses.before, losses.after) > ENOUGH
    assert falls(losses.shuffled, losses.after) > ENOUGH


def test_a_style_lowers_the_loss_of_its_own_images_only(worlds: dict[str, Path], tmp_path: Path) -> None:
    short = prepare("tiny_style_lora", tmp_path / "style", [worlds["stripes"]], 20)
    plain = list(prepare("tiny_style_lora", tmp_path / "plain", [worlds["plain"]], 20).loss.samples)
    before, before_plain = short.losses(), short.losses(plain)
    short.run()
    assert falls(before, short.losses()) > ENOUGH
    assert falls(before_plain, short.losses(plain)) < ENOUGH


def test_all_weights_learn_a_new_shape(worlds: dict[str, Path], tmp_path: Path) -> None:
    short = prepare("tiny_cross", tmp_path, [worlds["crosses"], worlds["plain"]], 20)
    crosses = [sample for sample in short.loss.samples if not sample.preserved]
    before = short.losses(crosses)
    short.run()
    assert falls(before, short.losses(crosses)) > ENOUGH
