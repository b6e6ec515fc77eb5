"""ControlNets: bit-equality with diffusers' pipelines, laws, alignment and training."""

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

from benchmarks.support.tiny.controlnet import (
    KINDS,
    OTHER_PICTURE,
    PICTURE,
    condition,
    tiny_controlnet,
    watch_transformer,
)
from benchmarks.support.tiny.synthetic import AddedReference
from diffusers_flux_ext import (
    Canvas,
    Contribution,
    ControlNetImage,
    DenoisingStep,
    FluxCondition,
    FluxConditionedPipeline,
    PromptEmbeds,
    predict_velocity,
)
from diffusers_flux_ext.canvas import pack_latents, sample_image_latents
from diffusers_flux_ext.methods.control.residuals import region_weights
from diffusers_flux_ext.testing import call_kwargs, different, quiet, seeded, tiny_pipeline, tiny_transformer


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


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
        conditions = {negative: condition(negative=negative) for negative in ("same", "own", None)}
        results = {}
        for negative, ours in conditions.items():
            ours.controlnet.register_forward_hook(lambda *arguments: calls.append(1))
            results[negative] = pipe(**call_kwargs(conditions=[ours], **GUIDED)).images
            calls.append(0)
        assert calls == [1] * 3 + [0] + [1] * 6 + [0] + [1] * 3 + [0]
        assert different(results["same"], results["own"])
        assert different(results["own"], results[None])

    def test_one_scale_for_all_blocks_is_a_scale_per_block(self, pipe):
        images = [
            pipe(**call_kwargs(conditions=[condition(scale=scale)])).images
            for scale in (0.5, [0.5, 0.5, 0.5], [0.5, 0.5, 0.0])
        ]
        assert torch.equal(images[0], images[1])
        assert different(images[1], images[2])

    def test_two_halves_are_the_whole(self, pipe):
        halves = [condition(region=region) for region in ((0, 0, 16, 32), (16, 0, 48, 32))]
        images = pipe(**call_kwargs(conditions=halves)).images
        torch.testing.assert_close(images, pipe(**call_kwargs(conditions=[condition()])).images, atol=1e-5, rtol=0)

    def test_residuals_stay_inside_the_region(self, pipe, monkeypatch):
        seen = watch_transformer(pipe, monkeypatch)
        pipe(**call_kwargs(conditions=[condition(region=(16, 0, 48, 16)), AddedReference(4)]))
        for residual in seen["controlnet_block_samples"] + seen["controlnet_single_block_samples"]:
            assert residual.shape == (1, 10, 32)
            assert (residual.abs().sum(2)[0] > 0).tolist() == [False, True, True] + [False] * 7

    def test_an_empty_region_is_no_condition(self, pipe, caplog, monkeypatch):
        import logging

        logger = logging.getLogger("diffusers_flux_ext.methods.control.residuals")
        monkeypatch.setattr(logger, "propagate", True)
        logger.addHandler(caplog.handler)
        images = pipe(**call_kwargs(conditions=[condition(region=Image.new("L", (48, 32)))])).images
        logger.removeHandler(caplog.handler)
        torch.testing.assert_close(images, pipe(**call_kwargs()).images, atol=1e-6, rtol=0)
        assert "Region 0 of `region` of ControlNetImage covers no token" in caplog.text


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


class TestGenerators:
    @pytest.mark.parametrize("count", [1, 2, 6])
    def test_a_wrong_number_is_refused(self, pipe, count):
        ours = condition(image=[PICTURE, OTHER_PICTURE], generator=[seeded(index) for index in range(count)])
        with pytest.raises(ValueError, match=f"{count} generators to sample the latents of 4 images"):
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
