"""FLUX.1 Fill: bit-equality with diffusers, pasting, other conditions, batches and inputs."""

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline
from PIL import Image

from benchmarks.support.tiny.controlnet import OTHER_PICTURE, PICTURE, tiny_controlnet
from benchmarks.support.tiny.ip_adapter import image_embeds, tiny_ip_adapter
from diffusers_flux_ext import (
    ControlNetImage,
    EntityRegions,
    FillMask,
    FluxConditionedPipeline,
    InpaintRegion,
    IPAdapterImages,
)
from diffusers_flux_ext.testing import call_kwargs, quiet, seeded, tiny_pipeline, tiny_transformer


BOX = (16, 0, 48, 16)
GUIDED = {"negative_prompt": ["ugly", "blurry"], "true_cfg_scale": 2.0}
TWO = {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 2}


def fill_pipeline():
    return tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0, in_channels=384, out_channels=64))


@pytest.fixture(scope="module")
def pipe():
    return fill_pipeline()


def hole(size=(48, 32)):
    """A round hole with a soft edge."""
    return Image.radial_gradient("L").resize(size).point(lambda value: 255 - value)


def condition(**arguments):
    return FillMask(**{"image": PICTURE, "mask": BOX, **arguments})


def draw(pipe, *conditions, **arguments):
    return pipe(**call_kwargs(conditions=conditions, **arguments)).images


def different(one, other):
    return bool((one - other).abs().max() > 1e-4)


def source(pipe, picture=PICTURE):
    return pipe.image_processor.preprocess(picture, height=32, width=48) / 2 + 0.5


class TestDiffusers:
    """`torch.equal` to `FluxFillPipeline`, which samples the latents of the picture."""

    @pytest.mark.parametrize("size", [(48, 32), (100, 40)])
    @pytest.mark.parametrize("more", [{}, TWO], ids=["one", "four"])
    def test_equal(self, pipe, size, more):
        stock = quiet(pipe.to_pipeline(FluxFillPipeline))
        latents = torch.randn(4 if more else 1, 6, 64, generator=seeded(1))
        arguments = {**more, "latents": latents, "guidance_scale": 30.0}
        expected = stock(**call_kwargs(image=PICTURE, mask_image=hole(size), **arguments)).images
        ours = condition(mask=hole(size), generator=seeded(), paste_back=False)
        assert torch.equal(draw(pipe, ours, **arguments), expected)
        assert different(expected, draw(pipe, condition(paste_back=False), **arguments))

    # Several images per prompt take the prompt's image here, and images in turn in the stock pipeline.
    @pytest.mark.parametrize("picture, count", [(PICTURE, 1), (PICTURE, 2), ([PICTURE, OTHER_PICTURE], 1)])
    def test_a_list_of_generators_and_a_batch_of_masks(self, pipe, picture, count):
        stock = quiet(pipe.to_pipeline(FluxFillPipeline))
        pictures = 2 if isinstance(picture, list) else 1
        masks = torch.zeros(pictures, 1, 32, 48)
        masks[0, :, :16, 16:] = masks[-1, :, 8:, :24] = 1
        arguments = {
            "prompt": ["a cat", "a dog"],
            "num_images_per_prompt": count,
            "guidance_scale": 30.0,
            "latents": torch.randn(2 * count, 6, 64, generator=seeded(1)),
        }
        generators = [[seeded(seed) for seed in range(2 * count)] for _ in range(2)]
        expected = stock(
            **call_kwargs(image=picture, mask_image=masks, **{**arguments, "generator": generators[0]})
        ).images
        ours = condition(image=picture, mask=masks, generator=generators[1], paste_back=False)
        # Several pictures are encoded one by one, which changes rounding.
        torch.testing.assert_close(draw(pipe, ours, **arguments), expected, atol=1e-5, rtol=0)

    def test_bfloat16(self):
        pipe = fill_pipeline().to(torch.bfloat16)
        stock = quiet(pipe.to_pipeline(FluxFillPipeline))
        arguments = {"latents": torch.randn(1, 6, 64, generator=seeded(1)).bfloat16(), "guidance_scale": 30.0}
        expected = stock(**call_kwargs(image=PICTURE, mask_image=hole(), **arguments)).images
        images = draw(pipe, condition(mask=hole(), generator=seeded(), paste_back=False), **arguments)
        assert torch.equal(images, expected)
        assert torch.isfinite(images).all()


class TestPasting:
    def test_the_outside_is_the_picture(self, pipe):
        images, raw = draw(pipe, condition()), draw(pipe, condition(paste_back=False))
        inside = torch.zeros(32, 48, dtype=torch.bool)
        inside[:16, 16:] = True
        assert torch.equal(images[..., ~inside], source(pipe)[..., ~inside])
        assert torch.equal(images[..., inside], raw[..., inside])
        assert different(raw[..., ~inside], images[..., ~inside])

    def test_a_full_and_an_empty_mask(self, pipe):
        full = {"mask": (0, 0, 48, 32)}
        assert torch.equal(draw(pipe, condition(**full)), draw(pipe, condition(**full, paste_back=False)))
        assert torch.equal(draw(pipe, condition(mask=np.zeros((32, 48)))), source(pipe))

    def test_a_full_mask_hides_the_picture(self, pipe):
        full = {"mask": (0, 0, 48, 32)}
        assert torch.equal(draw(pipe, condition(**full)), draw(pipe, condition(**full, image=OTHER_PICTURE)))
        assert different(draw(pipe, condition()), draw(pipe, condition(image=OTHER_PICTURE)))

    def test_two_that_paste_are_refused(self, pipe):
        for order in ([0, 1], [1, 0]):
            conditions = [condition(), InpaintRegion(PICTURE, BOX)]
            with pytest.raises(ValueError, match="FillMask.*decides the pixels.*`paste_back=False`"):
                draw(pipe, *(conditions[index] for index in order))
        images = draw(pipe, condition(paste_back=False), InpaintRegion(PICTURE, BOX))
        assert torch.equal(images[..., 16:, :], source(pipe)[..., 16:, :])


class TestTogether:
    def test_true_cfg(self, pipe):
        images = draw(pipe, condition(), **TWO, **GUIDED)
        assert different(images, draw(pipe, condition(), **TWO))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: EntityRegions(["a red dog"], [BOX]),
            lambda: ControlNetImage(tiny_controlnet(5), OTHER_PICTURE, 0.7),
            lambda: IPAdapterImages(tiny_ip_adapter(1), image_embeds=image_embeds(4)),
        ],
        ids=["entities", "controlnet", "ip-adapter"],
    )
    def test_others(self, pipe, make):
        other = make()
        images = draw(pipe, condition(), other)
        torch.testing.assert_close(images, draw(pipe, other, condition()), atol=1e-5, rtol=0)
        assert different(images, draw(pipe, condition()))
        assert torch.equal(images[..., 16:, :], source(pipe)[..., 16:, :])

    def test_image_to_image(self, pipe):
        start = {"image": PICTURE, "strength": 0.7}
        assert different(draw(pipe, condition(), **start), draw(pipe, condition()))


class TestInputs:
    def test_batches(self, pipe):
        latents = torch.randn(4, 6, 64, generator=seeded(5))
        pictures, masks = [PICTURE, OTHER_PICTURE], [BOX, (0, 0, 16, 32)]
        together = draw(pipe, condition(image=pictures, mask=masks), **TWO, latents=latents)
        for index in range(4):
            prompt = index // 2
            given = condition(image=pictures[prompt], mask=masks[prompt])
            alone = draw(pipe, given, prompt=TWO["prompt"][prompt], latents=latents[index : index + 1])
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("several", ["image", "mask"])
    def test_several_of_one_and_one_of_the_other(self, pipe, several):
        values = {"image": [PICTURE, OTHER_PICTURE], "mask": [BOX, (0, 0, 16, 32)]}[several]
        images = draw(pipe, condition(**{several: values}), prompt=["a cat", "a cat"])
        assert different(images[:1], images[1:])

    def test_kinds_of_masks(self, pipe):
        array = np.zeros((32, 48), dtype=np.uint8)
        array[:16, 16:] = 255
        expected = draw(pipe, condition())
        for mask in (
            array,
            array > 0,
            Image.fromarray(array),
            Image.fromarray(array).convert("RGB"),
            torch.tensor(array),
        ):
            assert torch.equal(draw(pipe, condition(mask=mask)), expected)
        assert torch.equal(draw(pipe, condition(mask=Image.fromarray(array).convert("1"))), expected)

    @pytest.mark.parametrize("given, words", [(3, "got 3"), ([seeded(), None], "NoneType")])
    def test_a_seed_is_no_generator(self, given, words):
        with pytest.raises(TypeError, match=f"`generator` of FillMask must be .*{words}"):
            condition(generator=given)

    def test_a_wrong_number_of_generators(self, pipe):
        with pytest.raises(ValueError, match="3 generators for 1 samples"):
            draw(pipe, condition(generator=[seeded(seed) for seed in range(3)]))

    def test_a_path_is_no_picture(self, pipe):
        with pytest.raises(TypeError, match="`image` of FillMask.*Open files first"):
            draw(pipe, condition(image="room.png"))

    @pytest.mark.parametrize("name", ["image", "mask"])
    def test_nothing_given(self, name):
        with pytest.raises(ValueError, match=f"{name}.*of FillMask is None"):
            condition(**{name: None})

    def test_numbers_that_do_not_fit(self, pipe):
        with pytest.raises(ValueError, match="2 samples, but there are 3 prompts"):
            draw(pipe, condition(image=[PICTURE, PICTURE]), prompt=["a", "b", "c"])

    def test_a_model_without_the_channels_is_refused(self):
        with pytest.raises(ValueError, match="takes 64 channels.*add \\[320\\]"):
            draw(tiny_pipeline(FluxConditionedPipeline), condition())

    def test_a_model_with_the_channels_needs_the_condition(self, pipe):
        with pytest.raises(ValueError, match="takes 384 channels"):
            draw(pipe)


def test_a_saved_pipeline_draws_the_same(pipe, tmp_path):
    pipe.to_pipeline(FluxFillPipeline).save_pretrained(tmp_path)
    loaded = quiet(FluxConditionedPipeline.from_pretrained(tmp_path))
    assert torch.equal(draw(loaded, condition()), draw(pipe, condition()))
    assert torch.equal(draw(FluxConditionedPipeline.from_pipe(loaded), condition()), draw(pipe, condition()))
