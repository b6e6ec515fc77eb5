"""Scenes, pictures, captions and masks of the world of shapes."""

import dataclasses
import hashlib
import random

import numpy as np
import pytest

from diffusers_flux_ext import flux_shapes


EARLIER_SCENES = "ef337baeeb8c5f08aecf19650b5e7bf39ec78a5d15fafcf00361780e609f7c5b"
RED_CIRCLE = flux_shapes.ShapeObject("circle", "red", "", (40.0, 40.0), 20.0)


def free_scenes(count: int, seed: int = 0) -> list[flux_shapes.Scene]:
    rng = random.Random(seed)
    return [flux_shapes.sample_free_scene(rng, 1 + index % 3) for index in range(count)]


def test_a_seed_fixes_scenes_captions_and_pictures() -> None:
    def everything(seed: int) -> list[tuple]:
        rng = random.Random(seed)
        scenes = [flux_shapes.sample_scene(rng) for _ in range(5)] + [flux_shapes.sample_free_scene(rng, 2)]
        return [(scene, flux_shapes.caption(scene, rng), flux_shapes.render(scene).tobytes()) for scene in scenes]

    assert everything(3) == everything(3)
    assert everything(3) != everything(4)


def test_held_out_scenes_are_disjoint_from_the_others() -> None:
    rng = random.Random(1)
    kept = [flux_shapes.sample_scene(rng, held_out=True) for _ in range(40)]
    rest = [flux_shapes.sample_scene(rng, held_out=False) for _ in range(200)]

    def identity(scene: flux_shapes.Scene) -> tuple:
        return scene.layout, tuple((o.color, o.shape, o.place) for o in scene.objects), scene.background

    assert not {identity(scene) for scene in kept} & {identity(scene) for scene in rest}


def test_about_one_free_scene_in_eight_is_held_out_in_any_order_and_at_any_position() -> None:
    scenes = free_scenes(800)
    assert 0.08 < np.mean([flux_shapes.is_held_out(scene) for scene in scenes]) < 0.17
    for scene in scenes[:20]:
        turned = flux_shapes.Scene(scene.background, scene.objects[::-1])
        assert flux_shapes.is_held_out(turned) == flux_shapes.is_held_out(scene)


def test_the_evaluation_scenes_are_held_out_and_have_two_or_three_objects() -> None:
    scenes = flux_shapes.held_out_entity_scenes(64)
    assert all(flux_shapes.is_held_out(scene) for scene in scenes)
    assert [len(scene.objects) for scene in scenes] == [2, 3] * 32
    assert scenes == flux_shapes.held_out_entity_scenes(64)


def test_free_objects_do_not_overlap_and_stay_inside() -> None:
    for scene in free_scenes(60):
        coverage = sum(flux_shapes.box_to_mask(item.extent).astype(int) for item in scene.objects)
        assert coverage.max() == 1
        assert all(0 < value < 128 for item in scene.objects for value in item.extent)


def test_pictures_fill_their_extent_with_their_colour() -> None:
    for shape in flux_shapes.SHAPES:
        item = flux_shapes.ShapeObject(shape, "red", "", (60.0, 70.0), 24.0)
        pixels = np.asarray(flux_shapes.render(flux_shapes.Scene("white", (item,))), dtype=int)
        rows, columns = np.nonzero(np.abs(pixels - 250).sum(axis=-1) > 30)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(seen, item.extent, atol=2.0)
        assert tuple(pixels[70, 60]) == flux_shapes.COLORS["red"]


def test_captions_name_everything() -> None:
    rng = random.Random(2)
    for scene in [flux_shapes.sample_scene(rng) for _ in range(50)] + free_scenes(20):
        text = flux_shapes.caption(scene, rng)
        assert scene.background in text
        assert all(phrase in text for phrase in flux_shapes.entity_prompts(scene))


def test_phrases_use_the_right_article() -> None:
    assert flux_shapes.entity_phrase(RED_CIRCLE) == "a red circle"
    assert flux_shapes.entity_phrase(flux_shapes.ShapeObject("star", "orange", "", (9, 9), 5)) == "an orange star"
    assert (
        flux_shapes.entity_phrase(flux_shapes.ShapeObject("star", "orange", "big", (9, 9), 5)) == "a big orange star"
    )


def test_boxes_contain_their_objects_and_masks_match_boxes() -> None:
    rng = random.Random(5)
    for scene in free_scenes(30):
        for boxes in (flux_shapes.entity_boxes(scene, 0), flux_shapes.sample_boxes(scene, rng)):
            for (left, top, right, bottom), item in zip(boxes, scene.objects):
                assert left <= item.extent[0]
                assert top <= item.extent[1]
                assert right >= item.extent[2]
                assert bottom >= item.extent[3]
        areas = [(right - left) * (bottom - top) for left, top, right, bottom in flux_shapes.entity_boxes(scene)]
        assert [int((np.asarray(mask) > 0).sum()) for mask in flux_shapes.entity_masks(scene)] == areas


def test_one_pixel_covers_its_token() -> None:
    mask = np.zeros((128, 128), dtype=bool)
    mask[15, 127] = True
    tokens = flux_shapes.token_mask(mask)
    assert tokens.shape == (8, 8)
    assert tokens[0, 7]
    assert tokens.sum() == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("hexagon", "red", "", (64, 64), 20), "hexagon.*circle"),
        (("circle", "pink", "", (64, 64), 20), "pink.*red"),
        (("circle", "red", "huge", (64, 64), 20), "huge.*small"),
        (("circle", "red", "", (64, 200), 20), "`center`.*200"),
        (("circle", "red", "", (64, 64), 0), "radius.*0"),
        (("circle", "red", "", (64, 64), 20, "nowhere"), "nowhere.*left"),
    ],
)
def test_wrong_objects_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flux_shapes.ShapeObject(*arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("pink", (RED_CIRCLE,)), "pink.*white"),
        (("white", ()), "at least one object"),
        (("white", (RED_CIRCLE,), "row"), "row.*single"),
        (("blue", (flux_shapes.ShapeObject("star", "blue", "", (64, 64), 20),)), "could not be seen"),
    ],
)
def test_wrong_scenes_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flux_shapes.Scene(*arguments)


def test_wrong_requests_are_refused() -> None:
    rng, scene = random.Random(0), flux_shapes.Scene("white", (RED_CIRCLE,))
    with pytest.raises(ValueError, match=r"\[1, 2, 3\].*7"):
        flux_shapes.sample_free_scene(rng, 7)
    with pytest.raises(ValueError, match="named layout 'free'"):
        flux_shapes.sample_scene(rng, layouts=["free"])
    with pytest.raises(ValueError, match="empty"):
        flux_shapes.sample_scene(rng, layouts=[])
    with pytest.raises(ValueError, match="-1"):
        flux_shapes.entity_boxes(scene, margin=-1)
    with pytest.raises(ValueError, match="no area"):
        flux_shapes.box_to_mask((50, 50, 50, 90))
    with pytest.raises(ValueError, match="multiples"):
        flux_shapes.token_mask(np.zeros((100, 128), dtype=bool))


def test_new_shapes_styles_and_brightness_are_drawn_where_they_are_asked_for() -> None:
    asked = {"shapes": flux_shapes.ALL_SHAPES, "styles": flux_shapes.STYLES, "brightness": (0.4, 0.9)}
    rng = random.Random(2)
    scenes = [flux_shapes.sample_free_scene(rng, 1 + index % 3, **asked) for index in range(60)]
    objects = [item for scene in scenes for item in scene.objects]
    assert {item.shape for item in objects} == {*flux_shapes.SHAPES, "cross"}
    assert {item.style for item in objects} == {"plain", "striped"}
    assert all(0.4 <= scene.brightness <= 0.9 for scene in scenes)
    phrases = {flux_shapes.entity_phrase(item) for item in objects}
    assert any("striped" in phrase and "cross" in phrase for phrase in phrases)


def test_earlier_seeds_give_earlier_scenes() -> None:
    digest = hashlib.sha256()
    rng = random.Random(3)
    for index in range(40):
        free = index % 2
        scene = flux_shapes.sample_free_scene(rng, 1 + index % 3) if free else flux_shapes.sample_scene(rng)
        assert scene.brightness == 1
        for item in scene.objects:
            assert item.style == "plain"
            assert item.shape in flux_shapes.SHAPES
            digest.update(repr((item.shape, item.color, item.size, item.center, item.radius, item.place)).encode())
        digest.update(scene.background.encode())
    assert digest.hexdigest() == EARLIER_SCENES


def test_brightness_scales_all_colours_and_outlines_keep_the_rest() -> None:
    scene = flux_shapes.Scene("white", (flux_shapes.ShapeObject("cross", "red", "", (64.0, 64.0), 30.0),))
    dark = dataclasses.replace(scene, brightness=0.5)
    pixels, darker = (np.asarray(flux_shapes.render(each)).astype(float) for each in (scene, dark))
    assert np.abs(darker - 0.5 * pixels).max() <= 0.5
    lines = np.asarray(flux_shapes.render_outlines(scene))
    assert lines[64, 64].tolist() == [0, 0, 0]
    assert 0 < (lines > 127).mean() < 0.1


@pytest.mark.parametrize("wrong", [{"shapes": ("hexagon",)}, {"styles": ("dotted",)}, {"shapes": ()}])
def test_unknown_shapes_and_styles_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="in the world of shapes"):
        flux_shapes.sample_free_scene(random.Random(0), 1, **wrong)


@pytest.mark.parametrize("brightness", [0.1, 1.2])
def test_brightness_out_of_range_is_refused(brightness: float) -> None:
    item = flux_shapes.ShapeObject("cross", "red", "", (64.0, 64.0), 30.0)
    with pytest.raises(ValueError, match="brightness"):
        flux_shapes.Scene("white", (item,), brightness=brightness)
