"""ControlNets: bit-equality with diffusers' pipelines, laws, batches and inputs."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetPipeline,
    FluxImg2ImgPipeline,
)
from diffusers.hooks import apply_group_offloading
from diffusers.models import FluxMultiControlNetModel
from PIL import Image

from diffusers_flux_ext import (
    Canvas,
    Contribution,
    ControlNetImage,
    DenoisingStep,
    EntityRegions,
    FluxCondition,
    FluxConditionedPipeline,
    PromptEmbeds,
    predict_velocity,
)
from diffusers_flux_ext.conditions import windows
from diffusers_flux_ext.conditions.base import EncodedConditions
from diffusers_flux_ext.conditions.controlnet_residuals import region_weights
from diffusers_flux_ext.latents import pack_latents, sample_image_latents
from tests.fixtures.controlnet import KINDS, OTHER_PICTURE, PICTURE, tiny_controlnet
from tests.fixtures.synthetic import AddedChannels, AddedReference
from tests.fixtures.tiny import call_kwargs, quiet, seeded, tiny_pipeline, tiny_transformer


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
EXTRA = {"union": {"mode": "depth"}, "inpaint": {"inpaint_mask": (16, 0, 48, 16)}}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


def condition(kind="plain", image=PICTURE, seed=5, **arguments):
    return ControlNetImage(tiny_controlnet(seed, kind), image, **{**EXTRA.get(kind, {}), **arguments})


def different(one, other):
    return bool((one - other).abs().max() > 1e-4)


class TestDiffusers:
    """`torch.equal` to diffusers' pipelines, which sample the latents of the control picture."""

    @pytest.mark.parametrize("kind", ["plain", "union", "upscaler", "xlabs"])
    @pytest.mark.parametrize("guided", [False, True])
    def test_text_to_image(self, pipe, kind, guided):
        controlnet = tiny_controlnet(5, kind)
        stock = quiet(pipe.to_pipeline(FluxControlNetPipeline, controlnet=controlnet))
        mode = {"control_mode": 2} if kind == "union" else {}
        arguments = {
            "prompt": ["a cat", "a dog"], "num_images_per_prompt": 2, "guidance_scale": 3.5,
            "latents": torch.randn(4, 6, 64, generator=seeded(1)),
            **({"negative_prompt": ["ugly", "blurry"], "true_cfg_scale": 2.0} if guided else {}),
        }  # fmt: skip
        window = {"control_guidance_start": 0.3, "control_guidance_end": 0.7, "controlnet_conditioning_scale": 0.7}
        expected = stock(**call_kwargs(**arguments, **mode, **window, control_image=PICTURE)).images
        sampled = {} if kind == "xlabs" else {"generator": seeded()}
        ours = condition(kind, scale=0.7, start=0.3, end=0.7, **sampled)
        images = pipe(**call_kwargs(conditions=[ours], **arguments)).images
        assert torch.equal(images, expected)
        assert different(images, pipe(**call_kwargs(**arguments)).images)

    def test_several(self, pipe):
        controlnets = [tiny_controlnet(seed) for seed in (5, 6, 7)]
        stock = quiet(pipe.to_pipeline(FluxControlNetPipeline, controlnet=FluxMultiControlNetModel(controlnets)))
        pictures, scales = [PICTURE, OTHER_PICTURE, PICTURE], [0.7, 0.4, 0.3]
        latents = torch.randn(1, 6, 64, generator=seeded(1))
        expected = stock(
            **call_kwargs(
                control_image=pictures, controlnet_conditioning_scale=scales, latents=latents, guidance_scale=3.5,
                control_mode=[None] * 3,
            )
        ).images  # fmt: skip
        generator = seeded()
        conditions = [
            ControlNetImage(controlnet, picture, scale, generator=generator)
            for controlnet, picture, scale in zip(controlnets, pictures, scales)
        ]
        assert torch.equal(pipe(**call_kwargs(conditions=conditions, latents=latents)).images, expected)

    @pytest.mark.parametrize("kind", ["plain", "xlabs"])
    def test_image_to_image(self, pipe, kind):
        stock = quiet(pipe.to_pipeline(FluxControlNetImg2ImgPipeline, controlnet=tiny_controlnet(5, kind)))
        arguments = {"image": OTHER_PICTURE, "strength": 0.7, "num_inference_steps": 4, "guidance_scale": 3.5}
        scale = {"controlnet_conditioning_scale": 0.7}
        expected = stock(**call_kwargs(control_image=PICTURE, **scale, **arguments)).images
        given, arguments["generator"] = (PICTURE, seeded()) if kind == "xlabs" else sampled_first(pipe)
        images = pipe(**call_kwargs(conditions=[condition(kind, given, scale=0.7)], **arguments)).images
        assert torch.equal(images, expected)
        assert different(images, pipe(**call_kwargs(**arguments)).images)

    def test_inpainting(self, pipe):
        stock = quiet(pipe.to_pipeline(FluxControlNetInpaintPipeline, controlnet=tiny_controlnet(5)))
        hole = Image.fromarray(np.pad(np.full((16, 32), 255, np.uint8), ((0, 16), (16, 0))))
        arguments = {"image": OTHER_PICTURE, "strength": 0.7, "num_inference_steps": 4, "guidance_scale": 3.5}
        arguments["output_type"] = "latent"
        expected = stock(
            **call_kwargs(control_image=PICTURE, mask_image=hole, controlnet_conditioning_scale=0.7, **arguments)
        ).images
        given, generator = sampled_first(pipe)
        # diffusers keeps the outside from the same sample of the picture that it starts from.
        pixels = pipe.image_processor.preprocess(OTHER_PICTURE, height=32, width=48)
        source = pack_latents(sample_image_latents(pipe.vae, pixels, copy_of(generator)))
        conditions = [condition(image=given, scale=0.7), KeepOutside(source, torch.tensor(INSIDE)[:, None])]
        images = pipe(**call_kwargs(conditions=conditions, **{**arguments, "generator": generator})).images
        assert torch.equal(images, expected)
        assert different(images, pipe(**call_kwargs(conditions=conditions[1:], **arguments)).images)


INSIDE = [False, True, True, False, False, False]


@dataclass(frozen=True, eq=False)
class KeepOutside(FluxCondition):
    """`InpaintRegion` with a given sample of the picture's latents, and diffusers' order of operations."""

    source: torch.Tensor
    inside: torch.Tensor

    def encode(self, pipe, canvas):
        return {"noise": canvas.noise}

    def contribute(self, encoded, step):
        return Contribution()

    def after_step(self, encoded, step, latents):
        sigma = step.next_timestep[:, None, None]
        kept = sigma * encoded["noise"] + (1.0 - sigma) * self.source
        return torch.where(self.inside, latents, kept)


def copy_of(generator):
    return torch.Generator().set_state(generator.get_state())


def sampled_first(pipe):
    """The control latents that diffusers' pipelines draw before anything else, and the generator after that."""
    generator = seeded()
    pixels = pipe.image_processor.preprocess(PICTURE, height=32, width=48).contiguous()
    return sample_image_latents(pipe.vae, pixels, generator), generator


class TestLaws:
    @pytest.mark.parametrize("kind", KINDS)
    def test_scale_zero_is_no_condition(self, pipe, kind):
        images = pipe(**call_kwargs(conditions=[condition(kind, scale=0.0)], **GUIDED)).images
        assert torch.equal(images, pipe(**call_kwargs(**GUIDED)).images)

    def test_no_residual_outside_of_the_window_and_no_call(self, pipe):
        calls = []
        ours = condition(start=0.4, end=0.5)
        ours.controlnet.register_forward_hook(lambda *arguments: calls.append(1))
        images = pipe(**call_kwargs(conditions=[ours])).images
        assert torch.equal(images, pipe(**call_kwargs()).images)
        assert calls == []

    def test_both_branches_take_one_call(self, pipe):
        calls = []
        conditions = {negative: condition(negative=negative) for negative in ("shared", "own", None)}
        results = {}
        for negative, ours in conditions.items():
            ours.controlnet.register_forward_hook(lambda *arguments: calls.append(1))
            results[negative] = pipe(**call_kwargs(conditions=[ours], **GUIDED)).images
            calls.append(0)
        assert calls == [1] * 3 + [0] + [1] * 6 + [0] + [1] * 3 + [0]
        assert different(results["shared"], results["own"])
        assert different(results["own"], results[None])

    def test_one_scale_for_all_blocks_is_a_scale_per_block(self, pipe):
        images = [
            pipe(**call_kwargs(conditions=[condition(scale=scale)])).images
            for scale in (0.5, [0.5, 0.5, 0.5], [0.5, 0.5, 0.0])
        ]
        assert torch.equal(images[0], images[1])
        assert different(images[1], images[2])

    def test_two_halves_are_the_whole(self, pipe):
        halves = [condition(mask_region=region) for region in ((0, 0, 16, 32), (16, 0, 48, 32))]
        images = pipe(**call_kwargs(conditions=halves)).images
        torch.testing.assert_close(images, pipe(**call_kwargs(conditions=[condition()])).images, atol=1e-5, rtol=0)

    def test_residuals_stay_inside_the_region(self, pipe, monkeypatch):
        seen = watch_transformer(pipe, monkeypatch)
        pipe(**call_kwargs(conditions=[condition(mask_region=(16, 0, 48, 16)), AddedReference(4)]))
        for residual in seen["controlnet_block_samples"] + seen["controlnet_single_block_samples"]:
            assert residual.shape == (1, 10, 32)
            assert (residual.abs().sum(2)[0] > 0).tolist() == [False, True, True] + [False] * 7

    def test_an_empty_region_is_no_condition(self, pipe, caplog, monkeypatch):
        import logging

        logger = logging.getLogger("diffusers_flux_ext.conditions.controlnet_residuals")
        monkeypatch.setattr(logger, "propagate", True)
        logger.addHandler(caplog.handler)
        images = pipe(**call_kwargs(conditions=[condition(mask_region=Image.new("L", (48, 32)))])).images
        logger.removeHandler(caplog.handler)
        torch.testing.assert_close(images, pipe(**call_kwargs()).images, atol=1e-6, rtol=0)
        assert "Region 0 of ControlNetImage covers no token" in caplog.text


def watch_transformer(pipe, monkeypatch):
    """Keeps the arguments of the last call of the transformer."""
    seen = {}
    forward = pipe.transformer.forward

    def keep(*args, **kwargs):
        seen.update(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", keep)
    return seen


class TestAlignment:
    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_residuals_follow_the_true_depth(self, monkeypatch, count):
        transformer = tiny_transformer(0, num_layers=8, num_single_layers=7)
        pipe = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
        seen = watch_transformer(pipe, monkeypatch)
        ours = [
            ControlNetImage(tiny_controlnet(seed, num_layers=count, num_single_layers=4), PICTURE) for seed in (5, 6)
        ]
        pipe(**call_kwargs(conditions=ours))
        doubles = seen["controlnet_block_samples"]
        assert len(doubles) == 8
        assert len(seen["controlnet_single_block_samples"]) == 7
        interval = -(-8 // count)
        groups = [[id(residual) for residual in doubles[start : start + interval]] for start in range(0, 8, interval)]
        assert all(len(set(group)) == 1 for group in groups)
        assert len({group[0] for group in groups}) == len(groups)

    def test_xlabs_residuals_take_turns_beside_others(self, monkeypatch):
        transformer = tiny_transformer(0, num_layers=5)
        pipe = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
        seen = watch_transformer(pipe, monkeypatch)
        pipe(**call_kwargs(conditions=[condition("xlabs")]))
        alone = seen["controlnet_block_samples"]
        assert [id(residual) for residual in alone] == [id(alone[index % 2]) for index in range(5)]
        pipe(**call_kwargs(conditions=[condition("plain")], generator=seeded()))
        spread = seen["controlnet_block_samples"]
        pipe(**call_kwargs(conditions=[condition("xlabs"), condition("plain")], num_inference_steps=1))
        both = seen["controlnet_block_samples"]
        assert len(spread) == 1
        assert len(both) == 5
        assert torch.equal(both[0], both[2])
        assert not torch.equal(both[0], both[1])


class TestInputs:
    def test_pictures_and_masks_per_prompt(self, pipe):
        latents = torch.randn(4, 6, 64, generator=seeded(1))
        pictures, holes, regions = [PICTURE, OTHER_PICTURE], [(16, 0, 48, 16), (0, 0, 16, 32)], [LEFT, RIGHT]
        arguments = {"inpaint_mask": holes, "mask_region": regions}
        together = pipe(
            **call_kwargs(
                prompt=["a cat", "a dog"], num_images_per_prompt=2, latents=latents,
                conditions=[condition("inpaint", pictures, **arguments)],
            )
        ).images  # fmt: skip
        for index in range(4):
            prompt = index // 2
            ours = condition("inpaint", pictures[prompt], inpaint_mask=holes[prompt], mask_region=regions[prompt])
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
        "mask_region": ("plain", {"mask_region": LEFT}),
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


def test_training_reaches_the_controlnet(pipe):
    bare = tiny_pipeline(FluxConditionedPipeline)
    ours = condition()
    ours.controlnet.requires_grad_(True)
    canvas = Canvas(32, 48, 2, 1, torch.device("cpu"), torch.float32, max_sequence_length=16)
    with torch.no_grad():
        encoded = ours.encode(bare, canvas)
        prompt = PromptEmbeds(*bare.encode_prompt(["a", "b"], None, max_sequence_length=16))
    latents = torch.randn(2, 6, 64, generator=seeded(1))
    ids = bare._prepare_latent_image_ids(2, 2, 3, torch.device("cpu"), torch.float32)
    guidance = torch.tensor([3.5, 1.0])
    step = DenoisingStep(0, 1, "cond", torch.tensor([0.5, 0.2]), latents, ids, prompt, guidance)
    velocity = predict_velocity(bare.transformer, step, [ours.contribute(encoded, step)])
    velocity.square().mean().backward()
    gradients = [weight.grad for weight in ours.controlnet.controlnet_blocks.parameters()]
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


def test_an_offloaded_controlnet_draws_the_same(pipe):
    ours = condition()
    expected = pipe(**call_kwargs(conditions=[ours])).images
    apply_group_offloading(ours.controlnet, onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(pipe(**call_kwargs(conditions=[ours])).images, expected)


BAD = {
    "no mode": ("union", {"mode": None}, ValueError, r"'canny' \(0\).*'low quality' \(6\).*below 10; None came"),
    "a wrong mode": ("union", {"mode": "edges"}, ValueError, "'edges' came"),
    "a high mode": ("union", {"mode": 10}, ValueError, "below 10; 10 came"),
    "a boolean mode": ("union", {"mode": True}, ValueError, "True came"),
    "a mode without union": ("plain", {"mode": "canny"}, ValueError, "no union"),
    "no mask": ("inpaint", {"inpaint_mask": None}, ValueError, "4 channels for a mask.*is missing"),
    "a mask without channels": ("plain", {"inpaint_mask": LEFT}, ValueError, "0 channels.*was given.*`mask_region`"),
    "a window turned round": ("plain", {"start": 0.7, "end": 0.3}, ValueError, "start=0.7 and end=0.3"),
    "a window too long": ("plain", {"end": 28}, ValueError, "fractions of the schedule"),
    "too few scales": ("plain", {"scale": [1.0, 0.5]}, ValueError, "2 numbers.*1 double and 2 single"),
    "a scale of text": ("plain", {"scale": "strong"}, TypeError, "'strong' came"),
    "a scale that is no number": ("plain", {"scale": [1.0, float("nan"), 0.5]}, ValueError, "has to be finite"),
    "a generator for pixels": ("xlabs", {"generator": seeded()}, ValueError, "`generator` samples latents"),
    "no picture": ("plain", {"image": None}, ValueError, "`image` of ControlNetImage is None"),
    "a wrong branch": ("plain", {"negative": "zeros"}, ValueError, "'zeros' came"),
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


class TestGenerators:
    @pytest.mark.parametrize("count", [1, 2, 6])
    def test_a_wrong_number_is_refused(self, pipe, count):
        ours = condition(image=[PICTURE, OTHER_PICTURE], generator=[seeded(index) for index in range(count)])
        with pytest.raises(ValueError, match=f"{count} generators to sample the latents of 4 pictures"):
            pipe(**call_kwargs(prompt=["a", "b"], num_images_per_prompt=2, conditions=[ours]))

    def test_every_picture_counts(self, pipe):
        arguments = {"prompt": ["a", "b"], "num_images_per_prompt": 2}
        arguments["latents"] = torch.randn(4, 6, 64, generator=seeded(1))
        images = [
            pipe(
                **call_kwargs(
                    conditions=[condition(image=pictures, generator=[seeded(index) for index in range(4)])],
                    **arguments,
                )
            ).images
            for pictures in ([PICTURE, OTHER_PICTURE], [PICTURE, PICTURE])
        ]
        assert torch.equal(images[0][:2], images[1][:2])
        assert different(images[0][2:], images[1][2:])

    def test_one_starting_picture_with_a_generator_per_sample(self, pipe):
        stock = quiet(pipe.to_pipeline(FluxImg2ImgPipeline))
        arguments = {"image": PICTURE, "strength": 0.7, "num_images_per_prompt": 2, "guidance_scale": 3.5}
        expected, images = (
            each(**call_kwargs(**{**arguments, "generator": [seeded(1), seeded(2)]})).images for each in (stock, pipe)
        )
        assert torch.equal(images, expected)


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_regions_that_share_a_picture_sum_to_one(parts):
    canvas = Canvas(48, 80, 1, 1, torch.device("cpu"), torch.float32)
    weights = [
        region_weights("ControlNetImage", (index / parts, 0.0, (index + 1) / parts, 1.0), canvas)
        for index in range(parts)
    ]
    torch.testing.assert_close(sum(weights), torch.ones(1, 15, 1))
    half = region_weights("ControlNetImage", (0.0, 0.0, 0.5, 1.0), canvas)[0, :5, 0]
    assert half.tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]


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
        "two channels": ("plain", torch.zeros(2, 32, 48), r"shape \(2, 32, 48\)"),
        "small latents": ("plain", torch.zeros(1, 16, 2, 2), r"are \(2, 2\) \(height, width\); expected"),
        "latents for XLabs": ("xlabs", torch.zeros(1, 16, 4, 6), "given as VAE latents"),
        "latents to inpaint": ("inpaint", torch.zeros(1, 16, 4, 6), "given as VAE latents"),
    }

    @pytest.mark.parametrize(("kind", "image", "message"), SHAPES.values(), ids=SHAPES)
    def test_refused(self, pipe, kind, image, message):
        with pytest.raises(ValueError, match=message):
            pipe(**call_kwargs(conditions=[condition(kind, image)]))


def test_its_text_holds_no_weights():
    assert len(repr(condition(mask_region=LEFT))) < 400


def test_a_window_without_a_step_warns_once(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr(windows.logger, "warning", seen.append)
    pipe(**call_kwargs(conditions=[condition(start=0.4, end=0.6)], **GUIDED))
    assert ["ControlNetImage acts from 0.4 to 0.6" in text for text in seen] == [True]
