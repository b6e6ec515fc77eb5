"""ControlNets: pictures, masks, modes, numbers of inputs, and what is refused."""

import numpy as np
import pytest
import torch
from diffusers.models import FluxMultiControlNetModel
from PIL import Image

from benchmarks.support.tiny.controlnet import KINDS, OTHER_PICTURE, PICTURE, condition, tiny_controlnet
from benchmarks.support.tiny.synthetic import AddedChannels, AddedReference
from diffusers_flux_ext import (
    Canvas,
    ControlNetImage,
    EntityRegions,
    FluxConditionedPipeline,
)
from diffusers_flux_ext.encoded import EncodedConditions
from diffusers_flux_ext.inputs import numbers
from diffusers_flux_ext.testing import call_kwargs, different, seeded, tiny_pipeline, tiny_transformer


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


class TestInputs:
    def test_pictures_and_masks_per_prompt(self, pipe):
        latents = torch.randn(4, 6, 64, generator=seeded(1))
        pictures, holes, regions = [PICTURE, OTHER_PICTURE], [(16, 0, 48, 16), (0, 0, 16, 32)], [LEFT, RIGHT]
        arguments = {"inpaint_mask": holes, "region": regions}
        together = pipe(
            **call_kwargs(
                prompt=["a cat", "a dog"], num_images_per_prompt=2, latents=latents,
                conditions=[condition("inpaint", pictures, **arguments)],
            )
        ).images  # fmt: skip
        for index in range(4):
            prompt = index // 2
            ours = condition("inpaint", pictures[prompt], inpaint_mask=holes[prompt], region=regions[prompt])
            one = {"prompt": ["a cat", "a dog"][prompt], "latents": latents[index : index + 1]}
            alone = pipe(**call_kwargs(conditions=[ours], **one)).images
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)

    def test_pictures_of_every_type_agree(self, pipe):
        rgb = PICTURE.resize((48, 32))
        array = np.asarray(rgb)
        given = [rgb, array, torch.from_numpy(array.copy()).permute(2, 0, 1)[None], rgb.convert("RGBA")]
        images = [pipe(**call_kwargs(conditions=[condition(image=image)])).images for image in given]
        for other in images[1:]:
            torch.testing.assert_close(images[0], other, atol=1e-4, rtol=0)

    def test_a_picture_is_stretched_to_the_canvas(self, pipe):
        stretched = PICTURE.resize((48, 32), Image.Resampling.LANCZOS)
        images = [pipe(**call_kwargs(conditions=[condition(image=image)])).images for image in (PICTURE, stretched)]
        assert torch.equal(*images)

    @pytest.mark.parametrize(("name", "number"), [("canny", 0), ("low quality", 6), ("lq", 6)])
    def test_modes_by_name_are_modes_by_number(self, pipe, name, number):
        images = [pipe(**call_kwargs(conditions=[condition("union", mode=mode)])).images for mode in (name, number, 9)]
        assert torch.equal(images[0], images[1])
        assert different(images[0], images[2])

    def test_its_guidance_follows_its_own_config(self):
        schnell = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0, guidance_embeds=False))
        images = [
            schnell(**call_kwargs(conditions=[condition()], guidance_scale=scale)).images for scale in (1.0, 5.0)
        ]
        assert different(*images)
        without = condition("upscaler")
        images = [schnell(**call_kwargs(conditions=[without], guidance_scale=scale)).images for scale in (1.0, 5.0)]
        assert torch.equal(*images)

    CHANGES = {
        "image": ("plain", {"image": OTHER_PICTURE}),
        "scale": ("plain", {"scale": 0.5}),
        "start": ("plain", {"start": 0.3}),
        "end": ("plain", {"end": 0.7}),
        "mode": ("union", {"mode": "pose"}),
        "inpaint_mask": ("inpaint", {"inpaint_mask": (0, 0, 16, 32)}),
        "region": ("plain", {"region": LEFT}),
        "controlnet": ("plain", {"seed": 6}),
        "negative": ("plain", {"negative": None}),
        "generator": ("plain", {"generator": seeded(3)}),
    }

    @pytest.mark.parametrize(("kind", "change"), CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize(
        "others", [[], [EntityRegions(["a red dog"], [LEFT]), AddedReference(4)]], ids=["", "all"]
    )
    def test_every_input_counts(self, pipe, kind, change, others):
        images = [
            pipe(**call_kwargs(conditions=[condition(kind, **given), *others], **GUIDED)).images
            for given in ({}, change)
        ]
        assert (images[0] - images[1]).abs().max() > 1e-6

    def test_with_extra_channels(self):
        transformer = tiny_transformer(0, in_channels=68, out_channels=64)
        pipe = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
        others = [AddedChannels(4), AddedReference(4)]
        images = [pipe(**call_kwargs(conditions=[*others, *ours])).images for ours in ([], [condition()])]
        assert different(*images)

    @pytest.mark.parametrize("kind", KINDS)
    def test_bfloat16_is_finite(self, kind):
        pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
        ours = condition(kind)
        ours.controlnet.to(torch.bfloat16)
        assert torch.isfinite(pipe(**call_kwargs(conditions=[ours], **GUIDED)).images.float()).all()


BAD = {
    "no mode": ("union", {"mode": None}, ValueError, r"'canny' \(0\).*'low quality' \(6\).*below 10; got None"),
    "a wrong mode": ("union", {"mode": "edges"}, ValueError, "got 'edges'"),
    "a high mode": ("union", {"mode": 10}, ValueError, "below 10; got 10"),
    "a boolean mode": ("union", {"mode": True}, ValueError, "got True"),
    "a mode without union": ("plain", {"mode": "canny"}, ValueError, "not a union"),
    "no mask": ("inpaint", {"inpaint_mask": None}, ValueError, "4 channels for a mask.*is missing"),
    "a mask without channels": ("plain", {"inpaint_mask": LEFT}, ValueError, "0 channels.*was given.*`region`"),
    "a window turned round": ("plain", {"start": 0.7, "end": 0.3}, ValueError, "start=0.7 and end=0.3"),
    "a window too long": ("plain", {"end": 28}, ValueError, "fraction of the schedule"),
    "too few scales": ("plain", {"scale": [1.0, 0.5]}, ValueError, "2 numbers.*1 double and 2 single"),
    "a scale of text": ("plain", {"scale": "strong"}, TypeError, "got 'strong'"),
    "a scale that is no number": ("plain", {"scale": [1.0, float("nan"), 0.5]}, ValueError, "must be a finite number"),
    "a generator for pixels": ("xlabs", {"generator": seeded()}, ValueError, "`generator` of ControlNetImage samples "
    "latents"),
    "no picture": ("plain", {"image": None}, ValueError, "`image` of ControlNetImage is None"),
    "a wrong branch": ("plain", {"negative": "zeros"}, ValueError, "got 'zeros'"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        condition(kind, **arguments)


def test_several_controlnets_are_several_conditions():
    with pytest.raises(TypeError, match="FluxMultiControlNetModel.*several conditions"):
        ControlNetImage(FluxMultiControlNetModel([tiny_controlnet()]), PICTURE)


def test_a_controlnet_of_another_model(pipe):
    ours = condition(seed=5)
    wide = ControlNetImage(tiny_controlnet(5, num_attention_heads=4, pooled_projection_dim=20), PICTURE)
    with pytest.raises(ValueError, match="inner_dim 64 instead of 32, pooled_projection_dim 20 instead of 24"):
        pipe(**call_kwargs(conditions=[ours, wide]))


def test_the_number_of_pictures_is_checked(pipe):
    with pytest.raises(ValueError, match="3 samples, but there are 2 prompts"):
        pipe(**call_kwargs(prompt=["a", "b"], conditions=[condition(image=[PICTURE] * 3)]))


def test_a_controlnet_on_another_dtype_is_refused(pipe):
    ours = condition()
    ours.controlnet.to(torch.bfloat16)
    with pytest.raises(ValueError, match="`controlnet` of ControlNetImage is torch.bfloat16"):
        pipe(**call_kwargs(conditions=[ours]))


def test_a_device_with_and_without_an_index_is_the_same(pipe):
    for device in ("cpu", "cpu:0"):
        canvas = Canvas(32, 48, 1, 1, torch.device(device), torch.float32)
        assert EncodedConditions(pipe, [condition()], canvas).encoded[0]["control"].shape == (1, 6, 64)
    with pytest.raises(ValueError, match="on cpu, but the pipeline runs in torch.float32 on meta"):
        EncodedConditions(pipe, [condition()], Canvas(32, 48, 1, 1, torch.device("meta"), torch.float32))


class TestShapes:
    def test_gray_and_alpha(self, pipe):
        gray = np.asarray(PICTURE.convert("L").resize((48, 32)))
        rgb = np.stack([gray] * 3, axis=-1)
        rgba = np.concatenate([rgb, gray[..., None]], axis=-1)
        expected = pipe(**call_kwargs(conditions=[condition(image=rgb)])).images
        for image in (gray, gray[..., None], rgba, torch.from_numpy(gray.copy())):
            images = pipe(**call_kwargs(conditions=[condition(image=image)])).images
            torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)

    SHAPES = {
        "two channels": ("plain", torch.zeros(2, 32, 48), r"`image` .*got \(2, 32, 48\)"),
        "small latents": ("plain", torch.zeros(1, 16, 2, 2), r"latents of the shape \(1, 16, 2, 2\); expected .*4, 6"),
        "latents for XLabs": ("xlabs", torch.zeros(1, 16, 4, 6), "given as VAE latents"),
        "latents to inpaint": ("inpaint", torch.zeros(1, 16, 4, 6), "given as VAE latents"),
    }

    @pytest.mark.parametrize(("kind", "image", "message"), SHAPES.values(), ids=SHAPES)
    def test_refused(self, pipe, kind, image, message):
        with pytest.raises(ValueError, match=message):
            pipe(**call_kwargs(conditions=[condition(kind, image)]))


def test_its_text_holds_no_weights():
    assert len(repr(condition(region=LEFT))) < 400


def test_a_window_without_a_step_warns_once(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr(numbers.logger, "warning", seen.append)
    pipe(**call_kwargs(conditions=[condition(start=0.4, end=0.6)], **GUIDED))
    assert ["ControlNetImage acts from 0.4 to 0.6" in text for text in seen] == [True]
