"""The scorer: right about true pictures, near chance about others."""

import dataclasses
import random

import numpy as np
import pytest
from PIL import Image

from diffusers_flux_ext import flux_shapes


@pytest.fixture(scope="module")
def named() -> list[flux_shapes.Scene]:
    rng = random.Random(9)
    return [flux_shapes.sample_scene(rng) for _ in range(200)]


@pytest.fixture(scope="module")
def free() -> list[flux_shapes.Scene]:
    return flux_shapes.held_out_entity_scenes(100, seed=5)


def test_true_pictures_of_named_layouts_score_full(named: list[flux_shapes.Scene]) -> None:
    scores = [flux_shapes.score_scene(flux_shapes.render(scene), scene) for scene in named]
    summary = flux_shapes.summarize_scenes(scores)
    assert min(summary[name] for name in ("background", "color", "shape", "position", "size", "scenes")) >= 0.99


def test_pictures_of_other_scenes_score_near_zero(named: list[flux_shapes.Scene]) -> None:
    others = named[1:] + named[:1]
    scores = [flux_shapes.score_scene(flux_shapes.render(scene), other) for scene, other in zip(named, others)]
    summary = flux_shapes.summarize_scenes(scores)
    assert summary["scenes"] <= 0.01
    assert summary["color"] < 0.2


def test_entities_of_true_pictures_are_found_in_their_masks(free: list[flux_shapes.Scene]) -> None:
    scores = [
        flux_shapes.score_entities(flux_shapes.render(scene), scene, flux_shapes.entity_masks(scene)) for scene in free
    ]
    summary = flux_shapes.summarize_entities(scores)
    assert min(summary[name] for name in ("color", "shape", "both", "scenes")) >= 0.99
    assert summary["entities"] == 250


def test_entities_of_other_pictures_are_not_found(free: list[flux_shapes.Scene]) -> None:
    others = free[2:] + free[:2]
    scores = [
        flux_shapes.score_entities(flux_shapes.render(scene), other, flux_shapes.entity_masks(other))
        for scene, other in zip(free, others)
    ]
    assert flux_shapes.summarize_entities(scores)["both"] < 0.05


def test_swapped_objects_are_not_found_in_each_others_masks() -> None:
    circle = flux_shapes.ShapeObject("circle", "red", "", (34.0, 64.0), 22.0)
    square = flux_shapes.ShapeObject("square", "blue", "", (94.0, 64.0), 22.0)
    scene = flux_shapes.Scene("white", (circle, square))
    masks = flux_shapes.entity_boxes(scene)
    right = flux_shapes.score_entities(flux_shapes.render(scene), scene, masks)
    swapped = flux_shapes.score_entities(flux_shapes.render(scene), scene, masks[::-1])
    assert all(item.color and item.shape for item in right)
    assert not any(item.color or item.shape for item in swapped)


def test_an_empty_picture_has_no_objects_and_scores_nothing(free: list[flux_shapes.Scene]) -> None:
    blank = Image.new("RGB", (128, 128), (150, 150, 150))
    assert flux_shapes.detect_objects(blank) == []
    assert flux_shapes.detect_background(blank) == ("gray", 1.0)
    scores = flux_shapes.score_entities(blank, free[0], flux_shapes.entity_boxes(free[0]))
    assert not any(item.color or item.shape for item in scores)


def test_float_arrays_score_like_pictures(free: list[flux_shapes.Scene]) -> None:
    for scene in free[:5]:
        picture, boxes = flux_shapes.render(scene), flux_shapes.entity_boxes(scene)
        as_floats = np.asarray(picture, dtype=np.float32) / 255
        assert flux_shapes.score_entities(as_floats, scene, boxes) == flux_shapes.score_entities(picture, scene, boxes)
        assert flux_shapes.score_scene(as_floats, scene) == flux_shapes.score_scene(picture, scene)


def test_every_combination_is_detected() -> None:
    for shape in flux_shapes.SHAPES:
        for background in flux_shapes.BACKGROUNDS:
            for color in set(flux_shapes.COLORS) - {background}:
                item = flux_shapes.ShapeObject(shape, color, "", (70.0, 50.0), 18.0)
                (found,) = flux_shapes.detect_objects(flux_shapes.render(flux_shapes.Scene(background, (item,))))
                assert (found.shape, found.color) == (shape, color)
                np.testing.assert_allclose(found.extent, item.extent, atol=2.0)


def test_wrong_inputs_are_refused(free: list[flux_shapes.Scene]) -> None:
    scene, picture = free[0], flux_shapes.render(free[0])
    with pytest.raises(ValueError, match="128 x 128.*height=128"):
        flux_shapes.score_scene(Image.new("RGB", (64, 64)), scene)
    with pytest.raises(ValueError, match="2 objects, got 1 masks"):
        flux_shapes.score_entities(picture, scene, flux_shapes.entity_boxes(scene)[:1])
    with pytest.raises(ValueError, match=r"\(64, 64\)"):
        flux_shapes.score_entities(picture, scene, [np.ones((64, 64), dtype=bool)] * 2)
    with pytest.raises(ValueError, match="nothing to summarize"):
        flux_shapes.summarize_entities([])
    with pytest.raises(ValueError, match="nothing to summarize"):
        flux_shapes.summarize_scenes([])


def test_new_shapes_styles_and_brightness_are_scored() -> None:
    rng = random.Random(5)
    asked = {"shapes": flux_shapes.ALL_SHAPES, "styles": flux_shapes.STYLES, "brightness": (0.4, 0.8)}
    scenes = [flux_shapes.sample_free_scene(rng, 1 + index % 3, **asked) for index in range(40)]
    for scene in scenes:
        image = flux_shapes.render(scene)
        score = flux_shapes.score_scene(image, scene)
        assert score.all_right
        assert all(item.style for item in score.objects)
        found = flux_shapes.score_entities(image, scene, flux_shapes.entity_masks(scene))
        assert all(item.color and item.shape and item.style for item in found)


def test_a_wrong_style_or_brightness_is_noticed() -> None:
    scene = flux_shapes.sample_free_scene(random.Random(1), 2, styles=("striped",), brightness=(0.5, 0.5))
    plain = dataclasses.replace(
        scene, objects=tuple(dataclasses.replace(item, style="plain") for item in scene.objects)
    )
    score = flux_shapes.score_scene(flux_shapes.render(plain), scene)
    assert score.all_right
    assert not any(item.style for item in score.objects)
    brighter = dataclasses.replace(scene, brightness=0.7)
    assert abs(flux_shapes.measure_brightness(flux_shapes.render(brighter), scene) - 0.7) < 0.01
    assert not flux_shapes.score_scene(flux_shapes.render(brighter), scene).brightness


def test_crosses_are_told_from_earlier_shapes_only_where_they_can_be() -> None:
    scene = flux_shapes.Scene("white", (flux_shapes.ShapeObject("cross", "red", "", (64.0, 64.0), 30.0),))
    image = flux_shapes.render(scene)
    assert flux_shapes.detect_objects(image)[0].shape in flux_shapes.SHAPES
    assert flux_shapes.detect_objects(image, shapes=flux_shapes.ALL_SHAPES)[0].shape == "cross"
