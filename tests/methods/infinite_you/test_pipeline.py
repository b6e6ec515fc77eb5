"""InfiniteYou: laws, regions, batches, composition and offloading."""

import pytest
import torch
from diffusers import FluxControlNetPipeline
from PIL import Image

from benchmarks.support.tiny.controlnet import OTHER_PICTURE, PICTURE, tiny_controlnet, watch_transformer
from benchmarks.support.tiny.infinite_you import POINTS, ColorFaceEncoder, face, identity, tiny_identity_modules
from benchmarks.support.tiny.ip_adapter import picture, tiny_ip_adapter, tiny_siglip
from benchmarks.support.tiny.synthetic import AddedReference, AddedText
from diffusers_flux_ext import (
    ControlNetImage,
    EntityRegions,
    FluxConditionedPipeline,
    FluxInfiniteYouPipeline,
    InpaintRegion,
    IPAdapterImages,
)
from diffusers_flux_ext._compat import offload_all_but
from diffusers_flux_ext.testing import call_kwargs, different, quiet, seeded, tiny_pipeline
from tests.fixtures.offload import watch_card


GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
LEFT, RIGHT = (0.0, 0.0, 1 / 3, 1.0), (1 / 3, 0.0, 1.0, 1.0)
LEFT_TOKENS = [True, False, False, True, False, False]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxInfiniteYouPipeline, **tiny_identity_modules(), face_encoder=ColorFaceEncoder())


class TestLaws:
    def test_no_identity_is_the_plain_pipeline(self, pipe):
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        assert torch.equal(pipe(**call_kwargs()).images, plain(**call_kwargs()).images)

    def test_scale_zero_is_no_identity(self, pipe):
        images = pipe(**call_kwargs(id_embeds=face(), controlnet_conditioning_scale=0.0, **GUIDED)).images
        assert torch.equal(images, pipe(**call_kwargs(**GUIDED)).images)

    def test_the_named_pipeline_is_the_condition(self, pipe):
        named = {
            "control_image": OTHER_PICTURE, "id_guidance_scale": 2.0, "controlnet_conditioning_scale": 0.7,
            "control_guidance_start": 0.3, "control_guidance_end": 0.7,
        }  # fmt: skip
        condition = identity(
            pipe, id_image=PICTURE, control_image=OTHER_PICTURE, face_encoder=pipe.face_encoder, guidance_scale=2.0,
            scale=0.7, start=0.3, end=0.7,
        )  # fmt: skip
        images = pipe(**call_kwargs(id_image=PICTURE, **named)).images
        assert torch.equal(images, pipe(**call_kwargs(conditions=[condition])).images)
        assert different(images, pipe(**call_kwargs()).images)

    def test_an_identity_is_a_controlnet_that_sees_other_tokens(self, pipe, monkeypatch):
        """diffusers' pipeline with the identity tokens in the place of the ControlNet's text, as the original."""
        stock = quiet(pipe.to_pipeline(FluxControlNetPipeline))
        tokens = pipe.image_projector(face()[None, None])
        forward = pipe.controlnet.forward

        def with_identity(*args, **kwargs):
            kwargs["encoder_hidden_states"] = tokens
            kwargs["txt_ids"] = torch.zeros(tokens.shape[1], 3)
            kwargs["guidance"] = torch.ones(1)
            return forward(*args, **kwargs)

        latents = torch.randn(1, 6, 64, generator=seeded(1))
        black = pipe.image_processor.preprocess(Image.new("RGB", (48, 32))).contiguous()
        shared = {"latents": latents, "guidance_scale": 3.5}
        with monkeypatch.context() as patch:
            patch.setattr(pipe.controlnet, "forward", with_identity)
            patch.setattr(
                "diffusers.pipelines.flux.pipeline_flux_controlnet.retrieve_latents",
                lambda output, generator=None: output.latent_dist.mode(),
            )
            expected = stock(**call_kwargs(control_image=black, controlnet_conditioning_scale=0.7, **shared)).images
        images = pipe(**call_kwargs(id_embeds=face(), controlnet_conditioning_scale=0.7, **shared)).images
        assert torch.equal(images, expected)

    def test_nothing_on_the_negative_side_by_default(self, pipe, monkeypatch):
        seen = []
        forward = pipe.transformer.forward
        monkeypatch.setattr(
            pipe.transformer,
            "forward",
            lambda **kwargs: seen.append("controlnet_block_samples" in kwargs) or forward(**kwargs),
        )
        pipe(**call_kwargs(id_embeds=face(), num_inference_steps=2, **GUIDED))
        assert seen == [True, False, True, False]
        seen.clear()
        pipe(**call_kwargs(conditions=[identity(pipe, negative="own")], num_inference_steps=1, **GUIDED))
        pipe(**call_kwargs(conditions=[identity(pipe, negative="same")], num_inference_steps=1, **GUIDED))
        assert seen == [True] * 4

    def test_the_text_does_not_reach_infusenet_but_the_identity_does(self, pipe):
        seen = []
        handle = pipe.controlnet.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True
        )
        for prompt, seed in (("a cat", 0), ("a dog", 0), ("a dog", 1)):
            pipe(**call_kwargs(prompt=prompt, id_embeds=face(seed), num_inference_steps=1))
        handle.remove()
        tokens = [kwargs["encoder_hidden_states"] for kwargs in seen]
        assert torch.equal(tokens[0], tokens[1])
        assert different(tokens[1], tokens[2])
        assert float(seen[0]["txt_ids"].abs().max()) == 0
        assert seen[0]["guidance"].tolist() == [1.0]


class TestRegions:
    def test_each_region_gets_its_own_residuals_only(self, pipe, monkeypatch):
        seen = watch_transformer(pipe, monkeypatch)

        def residuals(*conditions):
            pipe(**call_kwargs(conditions=list(conditions), num_inference_steps=1))
            return [*seen["controlnet_block_samples"], *seen["controlnet_single_block_samples"]]

        left = torch.tensor(LEFT_TOKENS)
        both = residuals(identity(pipe, 0, region=LEFT), identity(pipe, 1, region=RIGHT))
        first, second = residuals(identity(pipe, 0)), residuals(identity(pipe, 1))
        third = residuals(identity(pipe, 0, region=LEFT), identity(pipe, 2, region=RIGHT))
        # The single residual of the ControlNet's double block is spread over both double blocks when two are summed.
        first, second = ([parts[0], parts[0], *parts[1:]][: len(both)] for parts in (first, second))
        singles = (0, 0, 1)
        for index, mixed in enumerate(both[:2]):
            assert torch.equal(mixed[:, left], first[0][:, left])
            assert torch.equal(mixed[:, ~left], second[0][:, ~left])
            assert torch.equal(mixed[:, left], third[index][:, left])
            assert different(mixed[:, ~left], third[index][:, ~left])
        for mixed, source in zip(both[2:], singles):
            assert torch.equal(mixed[:, left], first[2 + source][:, left])
            assert torch.equal(mixed[:, ~left], second[2 + source][:, ~left])

    def test_changing_one_identity_leaves_the_residuals_of_the_other(self, pipe):
        images = [
            pipe(
                **call_kwargs(
                    conditions=[identity(pipe, 0, region=LEFT), identity(pipe, seed, region=RIGHT)],
                    prompt="two friends",
                )
            ).images
            for seed in (1, 2)
        ]
        assert different(*images)

    def test_the_same_identity_in_two_halves_is_one_identity(self, pipe):
        halves = [identity(pipe, 0, region=LEFT), identity(pipe, 0, region=RIGHT)]
        images = [pipe(**call_kwargs(conditions=conditions)).images for conditions in (halves, [identity(pipe, 0)])]
        torch.testing.assert_close(*images, atol=1e-5, rtol=0)


class TestBatches:
    def test_faces_and_key_points_per_prompt(self, pipe):
        latents = torch.randn(4, 6, 64, generator=seeded(1))
        points = torch.stack([torch.from_numpy(POINTS), torch.from_numpy(POINTS) + 3])
        embeds = torch.stack([face(0), face(1)])
        condition = identity(pipe, id_embeds=embeds, keypoints=points, region=[LEFT, RIGHT])
        prompts = ["a man", "a woman"]
        together = pipe(
            **call_kwargs(prompt=prompts, num_images_per_prompt=2, latents=latents, conditions=[condition])
        ).images
        for index in range(4):
            which = index // 2
            one = identity(pipe, id_embeds=embeds[which], keypoints=points[which], region=[LEFT, RIGHT][which])
            alone = pipe(
                **call_kwargs(prompt=prompts[which], latents=latents[index : index + 1], conditions=[one])
            ).images
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)

    def test_a_list_of_pictures(self, pipe):
        images = pipe(**call_kwargs(prompt=["a", "b"], id_image=[PICTURE, OTHER_PICTURE])).images
        same = pipe(**call_kwargs(prompt=["a", "b"], id_image=PICTURE)).images
        torch.testing.assert_close(images[0], same[0], atol=1e-5, rtol=0)
        assert different(images[1], same[1])

    def test_embeddings_of_an_encoder(self, pipe):
        found = pipe.face_encoder.encode(PICTURE)
        images = [pipe(**call_kwargs(**given)).images for given in ({"id_embeds": found}, {"id_image": PICTURE})]
        assert torch.equal(*images)


class TestComposition:
    @pytest.fixture(scope="class")
    def drawn(self):
        """What the unchanged identity draws beside each other condition."""
        return {}

    OTHERS = {
        "entities": lambda pipe: EntityRegions(["a red dog"], [LEFT], negative="own"),
        "inpaint": lambda pipe: InpaintRegion(OTHER_PICTURE, (16, 0, 48, 16)),
        "controlnet": lambda pipe: ControlNetImage(tiny_controlnet(5), PICTURE, 0.5),
        "xlabs": lambda pipe: ControlNetImage(tiny_controlnet(6, "xlabs"), PICTURE, 0.5),
        "identity": lambda pipe: identity(pipe, 1, region=RIGHT),
        "text": lambda pipe: AddedText(4),
        "reference": lambda pipe: AddedReference(4),
    }

    @pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
    def test_pairs_in_both_orders(self, pipe, other):
        parts = [identity(pipe, 0, region=LEFT, negative="own"), other(pipe)]
        results = [pipe(**call_kwargs(conditions=order, **GUIDED)).images for order in (parts, parts[::-1])]
        torch.testing.assert_close(*results, atol=1e-5, rtol=0)
        for part in parts:
            assert different(results[0], pipe(**call_kwargs(conditions=[part], **GUIDED)).images)

    def test_everything(self, pipe):
        parts = [identity(pipe, 0, region=LEFT), *(other(pipe) for other in self.OTHERS.values())]
        arguments = {"prompt": ["a", "b"], "num_images_per_prompt": 2, **GUIDED}
        results = [pipe(**call_kwargs(conditions=order, **arguments)).images for order in (parts, parts[::-1])]
        torch.testing.assert_close(*results, atol=1e-4, rtol=0)

    CHANGES = {
        "id_embeds": {"id_embeds": face(1)},
        "keypoints": {"keypoints": POINTS + 4},
        "scale": {"scale": [0.5, 0.2, 0.1]},
        "start": {"start": 0.3},
        "end": {"end": 0.7},
        "guidance_scale": {"guidance_scale": 3.0},
        "region": {"region": RIGHT},
        "negative": {"negative": "same"},
    }

    @pytest.mark.slow
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    @pytest.mark.parametrize("other", [*OTHERS.values(), None], ids=[*OTHERS, "alone"])
    def test_every_input_counts(self, pipe, drawn, change, other):
        base = {"region": LEFT, "keypoints": POINTS}

        def draw(**given):
            others = [] if other is None else [other(pipe)]
            return pipe(**call_kwargs(conditions=[identity(pipe, **{**base, **given}), *others], **GUIDED)).images

        if other not in drawn:
            drawn[other] = draw()
        assert (drawn[other] - draw(**change)).abs().max() > 1e-6

    def test_bfloat16_is_finite(self):
        pipe = tiny_pipeline(FluxInfiniteYouPipeline, **tiny_identity_modules()).to(torch.bfloat16)
        images = pipe(**call_kwargs(id_embeds=face(), **GUIDED)).images
        assert torch.isfinite(images.float()).all()


class TestOffload:
    def test_the_loop_keeps_what_it_runs_only(self, monkeypatch):
        pipe = tiny_pipeline(FluxInfiniteYouPipeline, **tiny_identity_modules(), image_encoder=tiny_siglip())
        entities = EntityRegions(["a red dog"], [LEFT])
        pictures = IPAdapterImages(tiny_ip_adapter(1), picture())
        arguments = {"id_embeds": face(), "conditions": [pictures, entities]}
        expected = pipe(**call_kwargs(**arguments)).images
        calls = watch_card(monkeypatch, pipe)
        assert torch.equal(pipe(**call_kwargs(**arguments)).images, expected)
        assert [card for name, card in calls if name == "transformer"] == [{"transformer", "controlnet"}] * 3

    def test_without_hooks_nothing_moves(self, pipe):
        offload_all_but(pipe, ("transformer",))
        assert not hasattr(pipe, "_all_hooks")
