"""The numbers of docs/training_proofs.md: where they come from, and how they are computed."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training import runner
from benchmarks.training.attributes import middle
from benchmarks.training.drawing import Measured, scenes
from benchmarks.training.edits import edited
from benchmarks.training.fill import error_outside, inside, round_trips
from benchmarks.training.image_prompts import followed, shares_alike
from benchmarks.training.intervals import interval, spearman
from benchmarks.training.runner import Bound
from benchmarks.training.shipped import FILE, lay_out
from benchmarks.training.size import half_side, measured_sizes, through_vae
from benchmarks.training.style import stripes
from benchmarks.training.table import table
from benchmarks.training.tasks import hole, image_prompt, recolored
from benchmarks.training.tower import told, train, untrained, write_tower
from benchmarks.training.worlds import (
    PLACED_RADII,
    RADII,
    centred,
    marked,
    place_of,
    size_of,
    sized,
    sized_and_placed,
    sized_anywhere,
    striped,
)
from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.training.config import read_config
from tests.fixtures.documentation import ROOT


RECIPES = sorted((ROOT / "examples" / "training").glob("tiny_*.yaml"))


def test_the_table_is_that_of_the_results():
    assert table() in (ROOT / "docs" / "training_proofs.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_configuration(recipe):
    config = read_config(recipe)
    assert config.model.path == "tiny"
    assert config.output == f"runs/{recipe.stem}"


def test_ranks_ties_and_intervals():
    values = np.arange(20.0)
    assert spearman(np.stack([values, values**3], axis=1)) == pytest.approx(1)
    assert spearman(np.stack([values, -values], axis=1)) == pytest.approx(-1)
    assert spearman(np.array([[0, 0], [0, 1], [1, 0], [1, 1]])) == pytest.approx(0)
    found = interval(list(values))
    assert found["low"] < found["value"] == 9.5 < found["high"]
    assert interval([1.0] * 5) == {"value": 1.0, "low": 1.0, "high": 1.0, "items": 5}


def test_a_stopped_measure_goes_on(tmp_path):
    asked = []

    def draw(part):
        asked.extend(part)
        return [np.full((2, 2), index) for index in part]

    measured = Measured(tmp_path / "measured.jsonl")
    for count in (3, 5):
        assert measured("one", count, draw, lambda index, image: float(image.mean())) == list(range(count))
    assert asked == [0, 1, 2, 3, 4]
    assert measured("other", 1, draw, lambda index, image: 7) == [7]


def test_stripes_are_told_from_plain_objects():
    shown = scenes(24, centred)
    drawn = {"striped": striped, "plain": flux_shapes.render}
    found = {
        kind: [stripes(np.asarray(render(scene)) / 255, scene) for scene in shown] for kind, render in drawn.items()
    }
    assert min(found["striped"]) > 0.9
    assert max(map(abs, found["plain"])) < 0.1


def test_true_images_have_their_own_sizes_and_places():
    for draw_scene, radii in ((sized, RADII), (sized_and_placed, PLACED_RADII)):
        shown = scenes(8, draw_scene)
        images = through_vae(np.stack([np.asarray(flux_shapes.render(scene)) for scene in shown]))
        found = measured_sizes([half_side(image) for image in images], shown, radii)
        np.testing.assert_allclose(found, [size_of(scene, radii) for scene in shown], atol=0.08)
    np.testing.assert_allclose([middle(image) for image in images], [place_of(scene) for scene in shown], atol=0.06)


def test_a_mark_says_the_place_alone():
    one, other = scenes(2, sized_anywhere)
    moved = replace(one, objects=(replace(one.objects[0], radius=20.0, shape="circle", center=(50.0, 70.0)),))
    larger = replace(one, objects=(replace(moved.objects[0], radius=30.0, shape="square"),))
    assert np.array_equal(np.asarray(marked(moved)), np.asarray(marked(larger)))
    assert not np.array_equal(np.asarray(marked(moved)), np.asarray(marked(other)))


def test_an_edit_is_told_from_the_given_image_and_from_another_object():
    rng = random.Random(1)
    for _ in range(8):
        task = recolored(rng, True)
        assert task.prompt == f"make it {task.scene.objects[0].color}"
        drawn = [flux_shapes.render(scene) for scene in (task.scene, _moved(task.scene))]
        images = [np.asarray(image) / 255 for image in (task.given["kontext_images"], *drawn)]
        assert [edited(image, task.scene) for image in images] == [[0, 1], [1, 1], [1, 0]]


def _moved(scene):
    (item,) = scene.objects
    x, y = item.center
    return replace(scene, objects=(replace(item, center=(128 - x, 128 - y) if abs(x - 64) > 8 else (x, 128 - y)),))


def test_what_fills_a_hole_is_told_from_an_empty_one_and_from_changes_outside():
    rng = random.Random(1)
    asked = [hole(rng, True) for _ in range(8)]
    for task in asked:
        given, filled = (
            np.asarray(each) / 255 for each in (task.given["flux_fill_image"], flux_shapes.render(task.scene))
        )
        assert inside(filled, task) == [1, 1]
        assert inside(given, task) == [0, 0]
        assert error_outside(filled, task) == error_outside(given, task) == 0
        assert error_outside(1 - given, task) > 0.1
    assert 0 < np.mean(round_trips(asked)) < 0.02


def test_an_object_of_an_image_is_told_from_others():
    rng = random.Random(1)
    for _ in range(8):
        task = image_prompt(rng, True)
        (item,) = task.scene.objects
        assert not {item.color, item.shape} & set(task.prompt.replace(task.scene.background, "").split())
        color = next(name for name in flux_shapes.COLORS if name not in (item.color, task.scene.background))
        shape = "square" if item.shape == "circle" else "circle"
        others = [replace(item, color=color), replace(item, shape=shape)]
        images = [
            task.given["image_prompt"],
            *(flux_shapes.render(replace(task.scene, objects=(one,))) for one in others),
        ]
        found = [followed(np.asarray(image) / 255, task.scene) for image in images]
        assert found == [[1, 1, 1], [0, 1, 1], [1, 0, 1]]


def test_the_chance_is_that_of_the_other_items():
    rng = random.Random(1)
    one, other = image_prompt(rng, True), image_prompt(rng, True)
    assert shares_alike([one, one, other]) == [0.5, 0.5, 0]


def test_a_tower_learns_what_scenes_show(tmp_path):
    shown = scenes(48, centred)
    tower = untrained(width=32)
    head = train(tower, shown, updates=2)
    before = told(tower, head, shown).mean()
    assert told(tower, train(tower, shown, updates=60), shown).mean() > before + 0.1
    # What is there is left alone.
    write_tower(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_bound_is_reached_when_the_whole_interval_lies_inside():
    measured = {"value": 0.95, "low": 0.91, "high": 0.97, "items": 100}
    assert Bound("share", measured, low=0.9).row()["reached"]
    assert not Bound("share", measured, low=0.92).row()["reached"]
    assert not Bound("share", measured, high=0.96).row()["reached"]


def test_what_ships_is_laid_out_as_a_training_exports_it(tmp_path):
    assert (lay_out(tmp_path, "tiny_style_lora") / FILE).is_file()
    size = lay_out(tmp_path, "tiny_size")
    assert {path.name for path in size.iterdir()} == {FILE, "encoder"}
    assert lay_out(tmp_path, "tiny_size") == size
    with pytest.raises(ValueError, match="Nothing that ships was made by the recipe 'tiny_cross'"):
        lay_out(tmp_path, "tiny_cross")
    # The first of the two trainings of the ControlNet.
    assert not any(lay_out(tmp_path, "tiny_controlnet").iterdir())


def test_a_result_of_another_configuration_is_not_taken_over(tmp_path, monkeypatch):
    def trained(arguments):
        Path("runs/tiny_size/result").mkdir(parents=True)
        return 0

    monkeypatch.setattr(runner, "flux_ext", trained)
    recipe = runner.Variant("tiny_size", "tiny_size")
    assert runner.train(tmp_path, recipe) == runner.train(tmp_path, recipe) == Path("runs/tiny_size/result")
    longer = runner.Variant("tiny_size", "tiny_size", ("run.updates=7",))
    with pytest.raises(SystemExit, match="was trained by another configuration"):
        runner.train(tmp_path, longer)
