"""Redux against the reference, which throws the prompt away, and against `FluxPriorReduxPipeline`."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxPriorReduxPipeline

from diffusers_flux_ext import FluxConditionedPipeline, FluxFlowMatchScheduler, ReduxImages
from diffusers_flux_ext.conditions.image_embeds import embed_images, image_processor_for
from tests.fixtures.ip_adapter import picture, tiny_siglip
from tests.fixtures.redux import patch_embeds, tiny_redux_embedder
from tests.fixtures.tiny import quiet, seeded
from tests.parity.reference import reference_pair
from tests.parity.reference.ip_adapter import reference_siglip
from tests.parity.reference.pipeline import flux_image
from tests.parity.reference.redux import reference_redux
from tests.parity.test_ip_adapter import LENGTH, STEPS, reference_images


FORWARD, LOOP = {"atol": 1e-4, "rtol": 0}, {"atol": 1e-3, "rtol": 0}
# The reference has the released widths of the zeros that take the prompt's place as constants.
WIDTHS = {"joint_attention_dim": 4096, "pooled_projection_dim": 768}
GONE = {"prompt_scale": 0.0, "pooled_scale": 0.0}


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3, **WIDTHS)
    encoder, embedder = tiny_siglip(4), tiny_redux_embedder(5, 4096)
    both.reference.flux_redux_image_encoder = reference_siglip(encoder)
    both.reference.flux_redux_image_embedder = reference_redux(embedder)
    parts = {"scheduler": FluxFlowMatchScheduler(), "image_encoder": encoder}
    return both.reference, quiet(FluxConditionedPipeline(**{**both.components, **parts})), embedder


def prompts(length=LENGTH):
    return {
        "prompt_embeds": torch.randn(1, length, 4096, generator=seeded(1)),
        "pooled_prompt_embeds": torch.randn(1, 768, generator=seeded(2)),
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
        embeds = patch_embeds(1, 2, 144, 12)
        torch.testing.assert_close(
            embedder(embeds).image_embeds, reference.flux_redux_image_embedder(embeds), **FORWARD
        )
        seen, unit = [], flux_image.FluxImageUnit_ReduxPromptEmbedder()
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
        class Encoded(FluxPriorReduxPipeline):
            """Takes prompts of the released width, which the tiny text encoders do not have."""

            def encode_prompt(self, prompt_embeds, pooled_prompt_embeds, **_):
                return prompt_embeds.clone(), pooled_prompt_embeds.clone(), None

        stock, ours, embedder = sides
        prior = self.prior(ours, embedder, Encoded, text_encoder=ours.text_encoder)
        given = [picture(0), picture(1, (50, 70))]
        twice = {name: value.repeat_interleave(2, 0) for name, value in prompts().items()}
        made = prior(given, **twice, prompt_embeds_scale=list(scales), pooled_prompt_embeds_scale=list(pooled))
        condition = ReduxImages(given, list(scales), sum(scales), sum(pooled), combine="sum", image_embedder=embedder)
        images = draw(ours, condition, **prompts())
        torch.testing.assert_close(images, draw(stock, **made), **FORWARD)
        assert (images - draw(ours, **prompts())).abs().max() > 0.01

    def test_a_picture_without_a_text_encoder(self, sides):
        stock, ours, embedder = sides
        expected = draw(stock, **self.prior(ours, embedder)(picture(0)))
        condition = ReduxImages(picture(0), **GONE, image_embedder=embedder)
        torch.testing.assert_close(draw(ours, condition, 512, **prompts(512)), expected, **FORWARD)
