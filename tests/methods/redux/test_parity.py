"""Redux against the reference, which throws the prompt away, and against `FluxPriorReduxPipeline`."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxPriorReduxPipeline

from benchmarks.support.reference import reference_pair
from benchmarks.support.reference.redux import add_redux, redux_unit, with_constants
from benchmarks.support.tiny.ip_adapter import picture
from benchmarks.support.tiny.redux import patch_embeds, tiny_redux_embedder, tiny_redux_vision
from diffusers_flux_ext import FluxConditionedPipeline, FluxFlowMatchScheduler, ReduxImages
from diffusers_flux_ext.inputs.vision import embed_images, image_processor_for
from diffusers_flux_ext.testing import quiet, seeded
from tests.methods.ip_adapter.test_parity import LENGTH, STEPS, reference_images


FORWARD, LOOP = {"atol": 1e-4, "rtol": 0}, {"atol": 1e-3, "rtol": 0}
GONE = {"prompt_scale": 0.0, "pooled_scale": 0.0}


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3)
    # The size of pictures is a constant of the reference.
    encoder, embedder = tiny_redux_vision(4, 384), tiny_redux_embedder(5)
    add_redux(both.reference, encoder, embedder)
    parts = {"scheduler": FluxFlowMatchScheduler(), "image_encoder": encoder}
    return both.reference, quiet(FluxConditionedPipeline(**{**both.components, **parts})), embedder


def prompts(length=LENGTH):
    return {
        "prompt_embeds": torch.randn(1, length, 40, generator=seeded(1)),
        "pooled_prompt_embeds": torch.randn(1, 24, generator=seeded(2)),
    }


def draw(pipe, condition=None, length=LENGTH, **more):
    latents = pipe._pack_latents(torch.randn(1, 16, 6, 8, generator=seeded(0)), 1, 16, 6, 8)
    images = pipe(
        height=48, width=64, num_inference_steps=STEPS, max_sequence_length=length, latents=latents, output_type="pt",
        **({} if condition is None else {"conditions": [condition]}), **more
    ).images  # fmt: skip
    return images * 2 - 1


class TestReference:
    def test_tokens_of_pictures(self, pair):
        reference, ours, embedder = pair
        embeds = patch_embeds(1, 2, 9, 12)
        torch.testing.assert_close(
            embedder(embeds).image_embeds, reference.flux_redux_image_embedder(embeds), **FORWARD
        )
        seen, unit = [], redux_unit(embedder, 24)
        handle = reference.flux_redux_image_embedder.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        given = [picture(0), picture(1, (500, 300)).convert("RGBA"), picture(2, (384, 384)).convert("L")]
        for image in given:
            unit.process(reference, flux_redux_image=image, t5_sequence_length=4)
        handle.remove()
        patches = embed_images(given, ours.image_encoder, patches=True)[0]
        torch.testing.assert_close(patches, torch.cat(seen), **FORWARD)

    @pytest.mark.parametrize("guided", [False, True])
    def test_a_loop(self, pair, guided):
        reference, ours, embedder = pair
        theirs = {"negative_prompt": "ugly", "cfg_scale": 2.0} if guided else {}
        expected = reference_images(reference, {"flux_redux_image": picture(0), **theirs})
        more = {f"negative_{name}": 2 * value for name, value in prompts().items()} if guided else {}
        condition = ReduxImages(picture(0), **GONE, negative="same", image_embedder=embedder)
        images = draw(ours, condition, **prompts(), **more, true_cfg_scale=2.0 if guided else 1.0)
        torch.testing.assert_close(images, expected, **LOOP)
        kept = draw(ours, ReduxImages(picture(0), image_embedder=embedder), **prompts())
        assert (kept - expected).abs().max() > 0.01


class TestDiffusers:
    """Two pictures with a prompt, factors and weights, and one picture without a text encoder, over a loop."""

    @pytest.fixture(scope="class")
    def sides(self, pair):
        _, ours, embedder = pair
        ours = quiet(ours.to_pipeline(FluxConditionedPipeline, scheduler=FlowMatchEulerDiscreteScheduler()))
        return quiet(ours.to_pipeline(FluxPipeline)), ours, embedder

    def prior(self, ours, embedder, prior_class=FluxPriorReduxPipeline, **more):
        processor = image_processor_for(ours.image_encoder)
        return prior_class(ours.image_encoder, processor, embedder, **more)

    @pytest.mark.parametrize("scales, pooled", [((1.0, 1.0), (1.0, 1.0)), ((0.7, 0.4), (0.5, -0.2))])
    def test_two_pictures_and_a_prompt(self, sides, scales, pooled):
        stock, ours, embedder = sides
        encoders = {
            name: getattr(ours, name) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        }
        prior = self.prior(ours, embedder, **encoders)
        given = [picture(0), picture(1, (50, 70))]
        weights = {"prompt_embeds_scale": list(scales), "pooled_prompt_embeds_scale": list(pooled)}
        made = prior(given, prompt=["a cat", "a cat"], **weights)
        condition = ReduxImages(given, list(scales), sum(scales), sum(pooled), combine="sum", image_embedder=embedder)
        images = draw(ours, condition, 512, prompt="a cat")
        torch.testing.assert_close(images, draw(stock, length=512, **made), **FORWARD)
        assert (images - draw(ours, length=512, prompt="a cat")).abs().max() > 0.01

    def test_a_picture_without_a_text_encoder(self, sides):
        class Narrow(FluxPriorReduxPipeline):
            """Has the widths of the tiny text encoders in place of the released ones."""

            __call__ = torch.no_grad()(
                with_constants(FluxPriorReduxPipeline.__call__.__wrapped__, {4096: 40, 768: 24})
            )

        stock, ours, embedder = sides
        expected = draw(stock, **self.prior(ours, embedder, Narrow)(picture(0)))
        condition = ReduxImages(picture(0), **GONE, image_embedder=embedder)
        torch.testing.assert_close(draw(ours, condition, 512, **prompts(512)), expected, **FORWARD)
