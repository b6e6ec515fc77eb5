"""One transform for all images of a sample."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.support.reference.boot import import_reference
from diffusers_flux_ext.training.data import Transform
from diffusers_flux_ext.training.data.flips import check_flips
from diffusers_flux_ext.training.data.resizing import reference_resize, reference_size
from diffusers_flux_ext.training.data.transforms import Drawn
from diffusers_flux_ext.training.draws import Draws
from tests.fixtures.training_data import noise


VARIED = Transform(crop="random", flip=0.5, brightness=0.3, contrast=0.2, saturation=0.4)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def marked(width: int, height: int, x: int, y: int) -> Image.Image:
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (x, y, x + 12, y + 12))
    return image


def test_draws_depend_on_the_sample_and_the_visit_alone() -> None:
    drawn = [VARIED.draw(Draws(1), index, epoch) for index in range(3) for epoch in range(3)]
    assert drawn == [VARIED.draw(Draws(1), index, epoch) for index in range(3) for epoch in range(3)]
    assert len(set(drawn)) == 9
    assert VARIED.draw(Draws(2), 0, 0) != drawn[0]
    assert Transform().draw(Draws(1), 0, 0) == Drawn()


def test_factors_and_flips_are_drawn_from_their_ranges() -> None:
    drawn = [VARIED.draw(Draws(0), index, 0) for index in range(400)]
    for name, width in (("brightness", 0.3), ("contrast", 0.2), ("saturation", 0.4)):
        values = [getattr(each, name) for each in drawn]
        assert 1 - width <= min(values) < 1 - 0.9 * width
        assert 1 + 0.9 * width < max(values) <= 1 + width
    assert 0.4 < np.mean([each.flip for each in drawn]) < 0.6


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_follows_its_image_at_any_resolution(seed: int) -> None:
    drawn = Transform(crop="random", flip=0.5).draw(Draws(seed), 0, 0)
    image = marked(120, 80, 50, 30)
    mask = image.resize((60, 40), Image.Resampling.BOX).convert("L")
    one = Transform().apply(image, 32, 32, drawn)
    other = Transform().apply(mask, 32, 32, drawn, "eligen_entity_masks")
    assert one.size == other.size == (32, 32)
    assert np.abs(pixels(one.convert("L")) - pixels(other)).mean() < 3


def test_colours_of_the_target_change_alone_unless_others_are_named() -> None:
    drawn = Drawn(brightness=0.5, contrast=1.2)
    image = noise(0)
    plain = Transform().apply(image, 32, 48)
    assert pixels(VARIED.apply(image, 32, 48, drawn, "image")).mean() < 0.8 * pixels(plain).mean()
    assert np.array_equal(pixels(VARIED.apply(image, 32, 48, drawn, "controlnet_image")), pixels(plain))
    both = Transform(brightness=0.5, color_columns=("image", "controlnet_image"))
    changed = both.apply(image, 32, 48, drawn, "controlnet_image")
    assert np.array_equal(pixels(changed), pixels(both.apply(image, 32, 48, drawn, "image")))


def test_references_are_mirrored_only_if_they_are_named() -> None:
    image, drawn = noise(0), Drawn(flip=True)
    kept = Transform(flip=1.0).apply_unsized(image, drawn, "kontext_images")
    mirrored = Transform(flip=1.0, flip_columns=("kontext_images",)).apply_unsized(image, drawn, "kontext_images")
    assert np.array_equal(pixels(kept), pixels(image))
    assert np.array_equal(pixels(mirrored), pixels(image)[:, ::-1])


@settings(max_examples=80, deadline=None)
@given(*[st.integers(1, 90)] * 4, *[st.floats(0, 1)] * 2)
def test_any_image_covers_any_size(
    height: int, width: int, new_height: int, new_width: int, across: float, down: float
):
    image = Image.new("RGB", (width, height), (90, 160, 30))
    resized = Transform().apply(image, new_height, new_width, Drawn(across=across, down=down))
    assert resized.size == (new_width, new_height)
    # No border of another colour.
    assert np.abs(pixels(resized) - np.array([90, 160, 30])).max() <= 1


class _TorchvisionForImages:
    """The two functions of torchvision that the reference calls, for PIL images, as torchvision computes them."""

    @staticmethod
    def resize(image: Image.Image, size: tuple[int, int], interpolation: object) -> Image.Image:
        return image if (image.height, image.width) == size else image.resize(size[::-1], Image.Resampling.BILINEAR)

    @staticmethod
    def center_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        height, width = size
        if (image.height, image.width) == size:
            return image
        top, left = int(round((image.height - height) / 2.0)), int(round((image.width - width) / 2.0))
        return image.crop((left, top, left + width, top + height))


SIZES = [(40, 56), (57, 33), (100, 31), (64, 64), (24, 80), (200, 123), (48, 48)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("max_pixels", [1200, 2500, 10**6])
def test_parity_of_sizes_and_pixels(monkeypatch: pytest.MonkeyPatch, height: int, width: int, max_pixels: int) -> None:
    operators = import_reference("diffsynth.core.data.operators")
    transforms = SimpleNamespace(
        functional=_TorchvisionForImages, InterpolationMode=SimpleNamespace(BILINEAR="bilinear")
    )
    monkeypatch.setattr(operators, "torchvision", SimpleNamespace(transforms=transforms))
    image = noise(3, height, width)
    theirs = operators.ImageCropAndResize(None, None, max_pixels, 16, 16)(image)
    ours = Transform(resize="reference").apply(image, *reference_size(height, width, max_pixels))
    assert np.array_equal(pixels(ours), pixels(theirs))
    fixed = operators.ImageCropAndResize(48, 32, max_pixels, 16, 16)(image)
    assert np.array_equal(pixels(reference_resize(image, 48, 32)), pixels(fixed))


class TestFlips:
    FLIP = Transform(flip=0.5)

    @pytest.mark.parametrize(
        "text", ["a cat on the left", "its RIGHT paw", "leftmost", "right-handed", "a left-hand glove"]
    )
    def test_sides_in_texts_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="1 texts say left or right.*row 3"):
            check_flips(self.FLIP, [("row 2", "a cat"), ("row 3", text)])

    @pytest.mark.parametrize("text", ["a bright cat", "cleft", "upright", "copyright", "lefty"])
    def test_other_words_are_not(self, text: str) -> None:
        check_flips(self.FLIP, [("row 3", text)])

    def test_nothing_is_refused_without_flips(self) -> None:
        check_flips(Transform(), [("row", "left")], ["kontext_images"], ["faces"])

    def test_references_have_to_take_part(self) -> None:
        with pytest.raises(ValueError, match=r"not the images of \['kontext_images'\]"):
            check_flips(self.FLIP, [], ["kontext_images"])
        check_flips(Transform(flip=0.5, flip_columns=("kontext_images",)), [], ["kontext_images"])

    def test_who_opted_out_is_named(self) -> None:
        with pytest.raises(ValueError, match="faces may not be mirrored"):
            check_flips(self.FLIP, [], [], ["faces"])


WRONG = [
    {"flip": 2},
    {"brightness": 1.0},
    {"crop": "left"},
    {"resize": "fit"},
    {"resize": "reference", "crop": "random"},
]


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Transform(**options)
