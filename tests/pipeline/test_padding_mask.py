"""Hiding the padding of prompts and of entities' texts: laws, inputs and composition."""

import inspect
from dataclasses import dataclass

import pytest
import torch

import diffusers_flux_ext
import diffusers_flux_ext.denoise as denoise
from benchmarks.support.conditions import CASES, METHODS, PICTURE, pipeline_for
from benchmarks.support.tiny.controlnet import PICTURE as CONTROL
from benchmarks.support.tiny.controlnet import tiny_controlnet
from benchmarks.support.tiny.synthetic import ReplacedPrompt
from diffusers_flux_ext import (
    Contribution,
    ControlNetImage,
    EntityRegions,
    FluxCondition,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    PromptEmbeds,
)
from diffusers_flux_ext.attention import plan as attention_plan
from diffusers_flux_ext.testing import call_kwargs, seeded, tiny_pipeline


CLOSE = {"atol": 1e-4, "rtol": 0}
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxEliGenPipeline)


@pytest.fixture(params=["dense mask", "classes"])
def execution(request, monkeypatch):
    cheaper = request.param == "dense mask"
    monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: cheaper)


def draw(pipe, **arguments):
    return pipe(**call_kwargs(**{"mask_padding": True, "num_inference_steps": 2, **arguments})).images


def masked_embeds(pipe, text, length):
    """T5's hidden states of the text's own tokens, run without any padding, then padded with noise."""
    embeds, pooled, _ = pipe.encode_prompt(text, max_sequence_length=len(pipe.tokenizer_2(text).input_ids))
    mask = torch.arange(length)[None] < embeds.shape[1]
    noise = torch.randn(1, length - embeds.shape[1], embeds.shape[2], generator=seeded(1))
    return {
        "prompt": None,
        "prompt_embeds": torch.cat([embeds, noise], dim=1),
        "pooled_prompt_embeds": pooled,
        "prompt_embeds_mask": mask,
    }


class TestLaws:
    def test_a_prompt_that_fills_all_tokens_is_not_changed(self, pipe):
        full = len(pipe.tokenizer_2("a cat on the table").input_ids)
        entities = {"entity_prompts": ["a red dog and"], "entity_masks": [LEFT], "max_sequence_length": full}
        assert len(pipe.tokenizer_2("a red dog and").input_ids) < full
        assert torch.equal(
            draw(pipe, max_sequence_length=full), draw(pipe, max_sequence_length=full, mask_padding=False)
        )
        assert not torch.equal(draw(pipe, **entities), draw(pipe, **entities, mask_padding=False))

    def test_a_mask_of_ones_is_no_mask(self, pipe):
        given = {**masked_embeds(pipe, "a cat", 8), "prompt_embeds_mask": torch.ones(1, 8, dtype=torch.long)}
        unmasked = {name: value for name, value in given.items() if name != "prompt_embeds_mask"}
        assert torch.equal(draw(pipe, **given), draw(pipe, **unmasked, mask_padding=False))

    def test_the_length_does_not_matter(self, pipe, execution):
        """Of prompts of different lengths in a batch, of the negative prompt and of the entities."""
        arguments = {
            "prompt": ["a cat on the table", "a tree"],
            "num_images_per_prompt": 2,
            "entity_prompts": [["a red dog", "a bird"], ["a big blue bird"]],
            "entity_masks": [[LEFT, RIGHT], [LEFT]],
            "entities_on_negative": True,
            **GUIDED,
        }
        base = draw(pipe, max_sequence_length=16, **arguments)
        torch.testing.assert_close(draw(pipe, max_sequence_length=8, **arguments), base, **CLOSE)
        torch.testing.assert_close(draw(pipe, max_sequence_length=40, **arguments), base, **CLOSE)
        shown = [draw(pipe, max_sequence_length=length, mask_padding=False, **arguments) for length in (8, 16)]
        assert (shown[0] - shown[1]).abs().max() > 1e-3

    @pytest.mark.parametrize("name", METHODS)
    def test_the_length_does_not_matter_beside_any_condition(self, name):
        pipe, conditions = pipeline_for(name), [CASES[name].build()]
        arguments = {"conditions": conditions, "prompt": ["a cat", "a red tree"], **GUIDED}
        short, long = (draw(pipe, max_sequence_length=length, **arguments) for length in (8, 16))
        torch.testing.assert_close(short, long, **CLOSE)

    def test_the_length_does_not_matter_for_image_to_image(self, pipe):
        short, long = (draw(pipe, max_sequence_length=n, image=PICTURE, strength=1.0) for n in (8, 16))
        torch.testing.assert_close(short, long, **CLOSE)
        assert (short - draw(pipe, max_sequence_length=8)).abs().max() > 1e-3

    def test_hidden_tokens_are_as_good_as_no_tokens(self, pipe, execution):
        given = masked_embeds(pipe, "a cat on the table", 24)
        kept = given["prompt_embeds_mask"][0]
        alone = {"prompt": None, "prompt_embeds": given["prompt_embeds"][:, kept]}
        alone["pooled_prompt_embeds"] = given["pooled_prompt_embeds"]
        torch.testing.assert_close(draw(pipe, **given), draw(pipe, mask_padding=False, **alone), **CLOSE)
        torch.testing.assert_close(draw(pipe), draw(pipe, mask_padding=False, **alone), **CLOSE)

    def test_a_batch_is_its_samples(self, pipe):
        latents = torch.randn(2, 6, 64, generator=seeded(1))
        prompts = ["a cat on the table", "a tree"]
        together = draw(pipe, prompt=prompts, latents=latents, **GUIDED)
        for index in range(2):
            alone = draw(pipe, prompt=prompts[index], latents=latents[index : index + 1], **GUIDED)
            torch.testing.assert_close(together[index : index + 1], alone, **CLOSE)

    def test_half_precision_stays_finite(self):
        pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
        assert draw(pipe, prompt=["", "a cat"], max_sequence_length=64, **GUIDED).isfinite().all()


class TestControlNets:
    @pytest.mark.parametrize("kind", ["union", "xlabs"])
    def test_they_see_no_padding_either(self, pipe, kind):
        """Three prompts of two lengths, so that runs of equal ones are called together."""
        condition = ControlNetImage(tiny_controlnet(5, kind), CONTROL, mode=0 if kind == "union" else None)
        arguments = {"prompt": ["a cat", "a dog", "a red tree"], "conditions": [condition]}
        base = draw(pipe, max_sequence_length=8, **arguments)
        torch.testing.assert_close(base, draw(pipe, max_sequence_length=16, **arguments), **CLOSE)
        latents = torch.randn(3, 6, 64, generator=seeded(1))
        together = draw(pipe, latents=latents, **arguments)
        alone = draw(pipe, **{**arguments, "prompt": "a red tree"}, latents=latents[2:])
        torch.testing.assert_close(together[2:], alone, **CLOSE)


class TestEntities:
    def lengths(self, pipe, mask_padding, call):
        for length in (8, 16):
            condition = EntityRegions(["a red dog"], [LEFT], max_sequence_length=length, mask_padding=mask_padding)
            yield draw(pipe, conditions=[condition], mask_padding=call)

    @pytest.mark.parametrize("own, call", [(True, False), (None, True), (True, True)])
    def test_hidden_by_their_own_choice_or_the_calls(self, pipe, own, call):
        torch.testing.assert_close(*self.lengths(pipe, own, call), **CLOSE)

    @pytest.mark.parametrize("own, call", [(False, True), (None, False)])
    def test_shown_by_their_own_choice_or_the_calls(self, pipe, own, call):
        short, long = self.lengths(pipe, own, call)
        assert (short - long).abs().max() > 1e-4


@dataclass(frozen=True, eq=False)
class MaskedPrompt(ReplacedPrompt):
    """A replaced prompt of `length` tokens, of which the last ones are hidden."""

    length: int = 5
    shown: int = 5

    def replace_prompt(self, encoded, step):
        prompt = super().replace_prompt(encoded, step)
        tokens = torch.nn.functional.pad(prompt.hidden_states, (0, 0, 0, self.length - 5), value=3.0)
        mask = torch.arange(self.length)[None] < self.shown
        return PromptEmbeds(tokens, prompt.pooled, torch.zeros(self.length, 3), mask)


class TestReplacedPrompts:
    def test_the_prompts_mask_goes_with_the_prompt(self, pipe):
        replaced = [ReplacedPrompt()]
        assert torch.equal(draw(pipe, conditions=replaced), draw(pipe, conditions=replaced, mask_padding=False))

    def test_a_condition_may_bring_its_own(self, pipe):
        base = draw(pipe, conditions=[ReplacedPrompt()])
        torch.testing.assert_close(draw(pipe, conditions=[MaskedPrompt(length=9)]), base, **CLOSE)
        assert (draw(pipe, conditions=[MaskedPrompt(length=9, shown=9)]) - base).abs().max() > 1e-3

    def test_a_mask_of_another_prompt_is_refused(self, pipe):
        @dataclass(frozen=True, eq=False)
        class Longer(FluxCondition):
            def replace_prompt(self, encoded, step):
                tokens = step.prompt.hidden_states
                return PromptEmbeds(torch.cat([tokens, tokens], 1), step.prompt.pooled, None, step.prompt.mask)

            def contribute(self, encoded, step):
                return Contribution()

        with pytest.raises(ValueError, match="1 samples and 32 tokens.*shape \\(1, 16\\).*its own mask"):
            draw(pipe, conditions=[Longer()])

    @pytest.mark.parametrize("mask", [torch.ones(1, 4), torch.ones(2, 4, dtype=torch.bool)])
    def test_wrong_masks(self, mask):
        with pytest.raises(ValueError, match="expected a boolean one of the shape \\(1, 4\\)"):
            PromptEmbeds(torch.zeros(1, 4, 8), torch.zeros(1, 8), torch.zeros(4, 3), mask)

    def test_a_mask_that_hides_everything(self):
        with pytest.raises(ValueError, match="hides all tokens of a sample"):
            PromptEmbeds(torch.zeros(1, 4, 8), torch.zeros(1, 8), torch.zeros(4, 3), torch.zeros(1, 4).bool())


class TestInputs:
    def test_embeddings_with_their_masks_on_both_branches(self, pipe):
        given = masked_embeds(pipe, "a cat on the table", 24)
        negative = {f"negative_{name}": value for name, value in masked_embeds(pipe, "ugly", 24).items()}
        arguments = {"true_cfg_scale": 2.0, "num_images_per_prompt": 2}
        torch.testing.assert_close(
            draw(pipe, **given, **negative, **arguments), draw(pipe, **GUIDED, num_images_per_prompt=2), **CLOSE
        )

    BAD = [
        ({"prompt_embeds_mask": None}, {}, "do not show which tokens are padding.*`prompt_embeds_mask`.*\\(1, 8\\)"),
        ({}, {"mask_padding": False}, "`prompt_embeds_mask` was given without `mask_padding=True`"),
        ({"prompt_embeds_mask": torch.ones(1, 9).bool()}, {}, "shape \\(1, 9\\).*1 prompts of 8 tokens"),
        ({"prompt_embeds_mask": torch.zeros(1, 8).bool()}, {}, "hides all tokens of a prompt"),
        (
            {"prompt": "a cat", "prompt_embeds": None, "pooled_prompt_embeds": None},
            {},
            "was given without `prompt_embeds`. Texts need no mask",
        ),
    ]

    @pytest.mark.parametrize("changes, call, message", BAD)
    def test_bad_masks(self, pipe, changes, call, message):
        given = {**masked_embeds(pipe, "a cat", 8), **changes}
        with pytest.raises(ValueError, match=message):
            draw(pipe, **given, **call)

    @pytest.mark.parametrize("mask", [torch.ones(1, 8), [[1] * 8]])
    def test_masks_of_another_type(self, pipe, mask):
        with pytest.raises(TypeError, match="`prompt_embeds_mask` must be a boolean or integer tensor"):
            draw(pipe, **{**masked_embeds(pipe, "a cat", 8), "prompt_embeds_mask": mask})

    def test_negative_embeddings_need_theirs_too(self, pipe):
        given = masked_embeds(pipe, "ugly", 16)
        del given["prompt"], given["prompt_embeds_mask"]
        negative = {f"negative_{name}": value for name, value in given.items()}
        with pytest.raises(ValueError, match="Give `negative_prompt_embeds_mask`, too"):
            draw(pipe, **negative)

    def test_a_compiled_t5_is_refused(self, pipe, monkeypatch):
        monkeypatch.setattr(pipe.text_encoder_2, "_compiled_call_impl", lambda *args, **kwargs: None, raising=False)
        with pytest.raises(ValueError, match="which a compiled `text_encoder_2` ignores"):
            draw(pipe)
        given = masked_embeds_of_noise(pipe)
        draw(pipe, **given)

    def test_t5_is_left_as_it_was(self, pipe):
        draw(pipe, **GUIDED)
        assert not pipe.text_encoder_2._forward_pre_hooks

    def test_every_named_pipeline_takes_it(self):
        public = (
            getattr(diffusers_flux_ext, name) for name in diffusers_flux_ext.__all__ if name.endswith("Pipeline")
        )
        for pipeline in public:
            assert {"mask_padding", "prompt_embeds_mask"} <= inspect.signature(pipeline.__call__).parameters.keys()


def masked_embeds_of_noise(pipe):
    width, pooled = pipe.transformer.config.joint_attention_dim, pipe.transformer.config.pooled_projection_dim
    return {
        "prompt": None,
        "prompt_embeds": torch.randn(1, 8, width, generator=seeded(1)),
        "pooled_prompt_embeds": torch.randn(1, pooled, generator=seeded(2)),
        "prompt_embeds_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]]),
    }


def test_plans_are_built_once_per_branch(pipe, monkeypatch):
    built = []

    def count(*args, **kwargs):
        built.append(args)
        return attention_plan.build_attention_plan(*args, **kwargs)

    monkeypatch.setattr(denoise, "build_attention_plan", count)
    draw(pipe, num_inference_steps=4, **GUIDED)
    assert len(built) == 2
