"""Nexus-Gen: laws, batches, images to edit, both decoders and descriptions."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.nexus_gen import (
    image_embeds,
    tiny_merger,
)
from diffusers_flux_ext import (
    AttributeValues,
    EntityRegions,
    FluxConditionedPipeline,
    FluxNexusGenPipeline,
    NexusGenEmbedding,
)
from diffusers_flux_ext.testing import different, quiet, seeded
from tests.methods.nexus_gen.drawing import GUIDED, LARGE, OTHER, PICTURE, draw


pytestmark = pytest.mark.versions


class TestLaws:
    @pytest.mark.parametrize("picture", [None, PICTURE])
    def test_the_named_pipeline_is_the_condition(self, pipe, picture):
        adapter = pipe.generation_adapter if picture is None else pipe.editing_adapter
        models = {"mllm": pipe.mllm, "mllm_processor": pipe.mllm_processor}
        condition = NexusGenEmbedding(adapter, "a cat on the table", picture, **models)
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        named = draw(pipe, image=picture, **GUIDED)
        assert torch.equal(named, draw(plain, conditions=[condition], **GUIDED))
        assert different(named, draw(plain, **GUIDED))

    @pytest.mark.parametrize("picture", [None, PICTURE])
    def test_cached_embeddings_need_no_language_model(self, pipe, picture, tmp_path):
        save_file(pipe.encode_image_embeds("a cat on the table", picture), tmp_path / "embeds.safetensors")
        cached = load_file(tmp_path / "embeds.safetensors")
        without = quiet(FluxNexusGenPipeline.from_pipe(pipe, mllm=None, mllm_processor=None))
        assert torch.equal(draw(without, image_embeds=cached), draw(pipe, image=picture))
        if picture is None:
            assert torch.equal(draw(without, image_embeds=cached["image_embeds"]), draw(pipe))

    def test_the_negative_branch_and_the_pooled_prompt_stay(self, pipe):
        seen = []
        handle = pipe.transformer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
        )
        try:
            plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
            draw(pipe, num_inference_steps=1, **GUIDED)
            draw(plain, num_inference_steps=1, **GUIDED)
        finally:
            handle.remove()
        cond, uncond, plain_cond, plain_uncond = seen
        assert torch.equal(uncond["encoder_hidden_states"], plain_uncond["encoder_hidden_states"])
        assert torch.equal(cond["pooled_projections"], plain_cond["pooled_projections"])
        assert cond["encoder_hidden_states"].shape == (1, 81, 40)

    def test_everything_but_the_transformer_runs_once(self, pipe, monkeypatch):
        calls = []
        for name in ("mllm", "editing_adapter"):
            forward = getattr(pipe, name).forward

            def counted(*args, _name=name, _forward=forward, **kwargs):
                calls.append(_name)
                return _forward(*args, **kwargs)

            monkeypatch.setattr(getattr(pipe, name), "forward", counted)
        draw(pipe, image=PICTURE, num_inference_steps=3, **GUIDED)
        assert calls == ["mllm", "editing_adapter"]

    def test_every_decoder_for_both_tasks(self, pipe):
        pictures = {
            (name, picture is None): draw(pipe, decoder=name, image=picture)
            for name in ("generation", "editing")
            for picture in (None, PICTURE)
        }
        assert torch.equal(pictures["generation", True], draw(pipe))
        assert torch.equal(pictures["editing", False], draw(pipe, image=PICTURE))
        drawn = list(pictures.values())
        assert all(different(one, other) for index, one in enumerate(drawn) for other in drawn[:index])

    def test_language_and_max_pixels(self, pipe):
        assert different(draw(pipe, language="zh"), draw(pipe))
        assert torch.equal(draw(pipe, image=PICTURE, language="zh"), draw(pipe, image=PICTURE))
        assert different(draw(pipe, image=LARGE, max_pixels=56 * 56), draw(pipe, image=LARGE))

    def test_t5_is_for_the_negative_prompt_only(self, pipe):
        without = quiet(FluxNexusGenPipeline.from_pipe(pipe, text_encoder_2=None, tokenizer_2=None))
        batch = {"prompt": ["a cat", "a red tree"], "num_images_per_prompt": 2, "image": PICTURE, "generator": None}
        batch["joint_attention_kwargs"] = {"scale": 0.5}
        latents = torch.randn(4, 6, 64, generator=seeded(5))
        for hidden in ({}, {"mask_padding": True}):
            given = {"latents": latents, **batch, **hidden}
            assert torch.equal(draw(without, **given), draw(pipe, **given))
        with pytest.raises(ValueError, match="no `text_encoder_2`, which reads the negative prompt"):
            draw(without, **GUIDED)

    def test_image_to_image(self, pipe):
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        condition = NexusGenEmbedding(
            pipe.editing_adapter, "a cat", PICTURE, mllm=pipe.mllm, mllm_processor=pipe.mllm_processor
        )
        start = {"strength": 0.6, "prompt": "a cat", "num_inference_steps": 3}
        drawn = draw(pipe, image=PICTURE, init_image=LARGE, **start)
        assert torch.equal(drawn, draw(plain, image=LARGE, conditions=[condition], **start))

    def test_with_entities_and_attributes_in_any_order(self, pipe):
        others = [
            EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)], negative="own"),
            AttributeValues(tiny_value_encoder(), {"brightness": 0.7}),
        ]
        drawn = [draw(pipe, image=PICTURE, conditions=order, **GUIDED) for order in (others, others[::-1])]
        torch.testing.assert_close(*drawn, atol=1e-5, rtol=0)
        assert different(drawn[0], draw(pipe, image=PICTURE, conditions=others[:1], **GUIDED))

    def test_training_reaches_the_adapter(self, pipe):
        merger = tiny_merger().requires_grad_(True)
        condition = NexusGenEmbedding(merger, image_embeds=image_embeds())
        from diffusers_flux_ext import Canvas, DenoisingStep, PromptEmbeds

        canvas = Canvas(32, 48, 1, 1, torch.device("cpu"), torch.float32)
        prompt = PromptEmbeds(torch.zeros(1, 4, 40), torch.zeros(1, 24), torch.zeros(4, 3))
        step = DenoisingStep(0, 1, "cond", torch.ones(1), torch.zeros(1, 6, 64), torch.zeros(6, 3), prompt)
        condition.replace_prompt(condition.encode(pipe, canvas), step).hidden_states.square().sum().backward()
        assert all(weight.grad is not None for weight in merger.parameters())


@pytest.mark.parametrize("given", [[PICTURE, OTHER], PICTURE, None], ids=["one each", "one for all", "none"])
def test_batches_are_their_samples(pipe, given):
    latents, prompts = torch.randn(4, 6, 64, generator=seeded(5)), ["a cat", "a red tree"]
    together = draw(pipe, prompt=prompts, num_images_per_prompt=2, latents=latents, image=given, **GUIDED)
    for index in (1, 2):
        one = {"image": given[index // 2] if isinstance(given, list) else given, "latents": latents[index : index + 1]}
        alone = draw(pipe, prompt=prompts[index // 2], **one, **GUIDED)
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


class TestPictures:
    def test_of_every_kind(self, pipe):
        expected = draw(pipe, image=PICTURE)
        array = np.asarray(PICTURE)
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255
        same = [PICTURE.convert("RGBA"), array, array[None], tensor]
        assert all(torch.equal(draw(pipe, image=picture), expected) for picture in same)
        grey = PICTURE.convert("L")
        assert torch.equal(draw(pipe, image=grey), draw(pipe, image=grey.convert("RGB")))

    @pytest.mark.parametrize("size", [(1, 1), (2000, 10), (600, 460)])
    def test_of_every_size(self, pipe, size):
        assert draw(pipe, image=Image.new("RGB", size, (200, 30, 30)), num_inference_steps=1).isfinite().all()

    def test_too_long(self, pipe):
        with pytest.raises(ValueError, match="201 x 1 pixels.*at most 200 times"):
            draw(pipe, image=Image.new("RGB", (201, 1)))
        with pytest.raises(ValueError, match="201 x 1 pixels"):
            pipe.describe(Image.new("RGB", (201, 1)))


def test_descriptions(pipe):
    answer = pipe.describe(PICTURE, "what is it?", max_new_tokens=3)
    assert answer == pipe.mllm.describe(PICTURE, "what is it?", processor=pipe.mllm_processor, max_new_tokens=3)
    assert isinstance(answer, str)
