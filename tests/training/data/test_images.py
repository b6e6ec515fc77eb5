"""The one loader of image files."""

import io

import numpy as np
import pytest
from PIL import Image

from diffusers_flux_ext.training.data import ImageOptions, load_image, load_mask
from diffusers_flux_ext.training.data.images import read_header
from tests.fixtures.training_data import as_bytes, noise


RGB = noise(0, 20, 30)
RED = (200, 10, 20)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_rgb_is_unchanged() -> None:
    loaded = load_image(as_bytes(RGB), "a.png")
    assert loaded.mode == "RGB"
    assert np.array_equal(pixels(loaded), pixels(RGB))
    assert not loaded.info


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = as_bytes(RGB, "PNG", exif=exif)
    loaded, header = load_image(content, "a.png"), read_header(content, "a.png")
    turned = {
        1: RGB, 2: RGB.transpose(0), 3: RGB.transpose(3), 4: RGB.transpose(1), 5: RGB.transpose(5),
        6: RGB.transpose(4), 7: RGB.transpose(6), 8: RGB.transpose(2),
    }[orientation]  # fmt: skip
    assert (header.width, header.height) == loaded.size == turned.size
    assert np.array_equal(pixels(loaded), pixels(turned))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes_become_rgb(mode: str) -> None:
    format = {"CMYK": "JPEG", "YCbCr": "JPEG", "LAB": "TIFF"}.get(mode, "PNG")
    loaded = load_image(as_bytes(RGB.convert(mode) if mode != "LAB" else lab(RGB), format), "a")
    assert (loaded.mode, loaded.size) == ("RGB", RGB.size)
    if mode in ("CMYK", "YCbCr"):
        assert np.abs(pixels(loaded) - pixels(RGB)).mean() < 12


def lab(image: Image.Image) -> Image.Image:
    return Image.frombytes("LAB", image.size, image.tobytes())


def test_16_bits_are_scaled_and_not_cut_off() -> None:
    values = np.linspace(0, 65535, 600).round().astype(np.uint16).reshape(20, 30)
    loaded = load_image(as_bytes(Image.fromarray(values)), "a.png")
    assert np.array_equal(pixels(loaded)[..., 0], np.round(values / 257).astype(int))
    tiff = load_image(as_bytes(Image.fromarray(values), "TIFF"), "a.tiff")
    assert np.array_equal(pixels(tiff), pixels(loaded))


def with_alpha(mode: str) -> Image.Image:
    alpha = Image.new("L", (4, 2), 255)
    alpha.putpixel((0, 0), 0)
    alpha.putpixel((1, 0), 128)
    base = Image.new("RGB", (4, 2), RED).convert("L" if mode == "LA" else "RGB")
    base.putalpha(alpha)
    return base


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composed_on_the_background(mode: str) -> None:
    loaded = load_image(as_bytes(with_alpha(mode)), "a.png", ImageOptions(background=(0, 0, 250)))
    opaque = pixels(loaded)[1, 1]
    assert loaded.getpixel((0, 0)) == (0, 0, 250)
    middle = (opaque * 128 + np.array([0, 0, 250]) * 127) / 255
    assert np.abs(pixels(loaded)[0, 1] - middle).max() <= 1


def test_transparent_palettes_and_keys_are_composed() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    for content in (
        as_bytes(palette, "PNG", transparency=1),
        as_bytes(palette.convert("RGB"), "PNG", transparency=(0, 255, 0)),
    ):
        loaded = load_image(content, "a.png")
        assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [RED, (255, 255, 255)]


def test_animated_files_give_their_first_frame_or_are_refused() -> None:
    stream = io.BytesIO()
    RGB.convert("P").save(stream, "GIF", save_all=True, append_images=[noise(1, 20, 30).convert("P")], duration=10)
    first = load_image(stream.getvalue(), "a.gif")
    assert np.array_equal(pixels(first), pixels(RGB.convert("P").convert("RGB")))
    assert read_header(stream.getvalue(), "a.gif").frames == 2
    with pytest.raises(ValueError, match=r"a\.gif is animated"):
        load_image(stream.getvalue(), "a.gif", ImageOptions(animated="refuse"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_files_are_refused(format: str) -> None:
    content = as_bytes(noise(0, 64, 64), format)
    with pytest.raises(ValueError, match=r"row 3: `a` is (truncated or broken|not an image)"):
        load_image(content[: len(content) * 2 // 3], "row 3: `a`")


def test_what_is_not_an_image_is_refused() -> None:
    for content in (b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(ValueError, match="is not an image of the formats|is truncated"):
            load_image(content, "a")


def test_large_images_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ValueError, match="has 30 x 20 pixels, more than the 599 of `max_pixels`"):
        load_image(as_bytes(RGB), "a.png", ImageOptions(max_pixels=599))
    bomb = bytearray(as_bytes(Image.new("1", (8, 8))))
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    import struct
    import zlib

    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    with pytest.raises(ValueError, match="too large"):
        load_image(bytes(bomb), "a.png")


def test_pixels_of_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="pixels of 32 bits"):
        load_image(as_bytes(Image.new("F", (4, 4)), "TIFF"), "a.tiff")


def test_masks_are_bright_where_they_count() -> None:
    mask = load_mask(as_bytes(with_alpha("LA")), "m.png")
    assert mask.mode == "L"
    assert mask.getpixel((0, 0)) == 0
    assert mask.getpixel((2, 1)) > 0


@pytest.mark.parametrize(
    "options", [{"background": (0, 0, 300)}, {"animated": "all"}, {"max_pixels": 0}, {"max_pixels": 10**9}]
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ImageOptions(**options)
