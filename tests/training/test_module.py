"""The trained module: the loop's own velocity, conditions left out of samples, losses and what is refused."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from peft import LoraConfig

from benchmarks.support.conditions import CASES, METHODS, pipeline_for
from diffusers_flux_ext import ControlNetImage, EntityRegions, FluxConditionedPipeline
from diffusers_flux_ext.attention.processor import regional_attention
from diffusers_flux_ext.denoise import DenoisingStep, PromptEmbeds, predict_velocity
from diffusers_flux_ext.encoded import EncodedConditions
from diffusers_flux_ext.jobs.caching import cache_config, running_with
from diffusers_flux_ext.jobs.sections import CacheSection
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer
from diffusers_flux_ext.training import FluxTraining, bare_condition, condition_modules, stack_conditions
from tests.training.samples import CANVAS, bare, batch, encode


TRAINED = tuple(name for name in METHODS if name != "inpaint")


def transformer_for(*names):
    return pipeline_for(*names).transformer


def drawn_velocity(name, given):
    """The velocity as the denoising loop computes it, from the condition with all its inputs."""
    pipe = pipeline_for(name)
    pipe._guidance_scale = 1.0
    noisy = (1 - given.sigma[:, None, None]) * given.latents + given.sigma[:, None, None] * given.noise
    prompt = PromptEmbeds(given.prompt_embeds, given.pooled_prompt_embeds, torch.zeros(16, 3))
    step = DenoisingStep(0, 1, "cond", given.sigma, noisy, given.latent_ids, prompt, given.guidance)
    encoded = EncodedConditions(pipe, [CASES[name].build()], CANVAS)
    step = encoded.with_prompt(step)
    with regional_attention(pipe.transformer):
        return predict_velocity(pipe.transformer, step, encoded.contributions(step))


def losses(names, given, **options):
    with FluxTraining(transformer_for(*names), [bare(name) for name in names], **options) as training:
        return training(given)


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_is_that_of_the_loops_velocity(name):
    given = batch(encode(name))
    with torch.no_grad():
        velocity = drawn_velocity(name, given)
        expected = (velocity - (given.noise - given.latents)).pow(2).mean(dim=(1, 2))
        torch.testing.assert_close(losses([name], given), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRAINED)
def test_a_batch_is_its_samples(name):
    encoded = encode(name)
    with torch.no_grad():
        many = losses([name], batch(stack_conditions([bare(name)], [encoded, encoded]), 2))
        alone = batch(encoded, 2)
        for index in range(2):
            one = {
                key: getattr(alone, key)[index : index + 1]
                for key in ("latents", "noise", "sigma", "prompt_embeds", "pooled_prompt_embeds", "guidance")
            }
            torch.testing.assert_close(losses([name], batch(encoded, **one))[0], many[index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in TRAINED if not CASES[name].channels and "gen" not in name])
def test_a_sample_without_the_condition_is_the_base(name):
    encoded = encode(name)
    stacked = stack_conditions([bare(name)], [encoded, encoded, encoded])
    given = batch(stacked, 3, keep=torch.tensor([[False, True, False]]))
    if name == "step1x":
        with pytest.raises(ValueError, match="Step1XInstruction replaces the prompt.*dropout to 0"):
            losses([name], given)
        return
    with torch.no_grad():
        some, all_kept = losses([name], given), losses([name], batch(stacked, 3))
        none = losses([], batch([], 3))
    torch.testing.assert_close(some[[0, 2]], none[[0, 2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some[1], all_kept[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(all_kept, none, rtol=1e-4)


def test_a_control_net_does_not_see_a_dropped_attribute():
    names = ["attributes", "controlnet"]
    encoded = encode(*names)
    given = batch(encoded, keep=torch.tensor([[False], [True]]))
    with torch.no_grad():
        both = losses(names, given)
        torch.testing.assert_close(both, losses(["controlnet"], batch(encoded[1:])), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(both, losses(names, batch(encoded)), rtol=1e-4)


def test_weights_of_samples_tokens_and_levels():
    given = batch([], 2)
    plain = losses([], given)
    weight = torch.tensor([2.0, 0.5])
    torch.testing.assert_close(losses([], batch([], 2, weight=weight)), plain * weight)
    torch.testing.assert_close(losses([], given, weighting=lambda sigma: sigma), plain * given.sigma)
    mask = torch.zeros(2, CANVAS.num_tokens)
    mask[:, 1] = 1
    second = losses(
        [], given, errors=lambda prediction, target, sigma, mask: (prediction - target)[:, 1].pow(2).mean(1)
    )
    torch.testing.assert_close(losses([], batch([], 2, mask=mask)), second)
    assert not torch.allclose(second, plain)


def test_the_bases_own_prediction_is_the_target():
    transformer = tiny_transformer(0)
    given = batch([], 2, preserved=torch.tensor([True, False]))
    with FluxTraining(transformer) as training, pytest.raises(ValueError, match="has no adapters to disable"):
        training(given)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    with FluxTraining(transformer) as training:
        changed = training(given)
        transformer.disable_adapters()
        plain = training(batch([], 2))
        transformer.enable_adapters()
    assert 0 < changed[0] < plain[0]
    transformer.delete_adapters("default")
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with FluxTraining(transformer) as training:
        assert training(given)[0] == 0


def test_every_module_of_a_condition_is_a_submodule_once():
    conditions = [bare("controlnet"), bare("controlnet"), bare("identity")]
    modules = condition_modules(conditions)
    assert sorted(modules) == [
        "ControlNetImage_controlnet", "InfiniteYouIdentity_controlnet", "InfiniteYouIdentity_image_projector",
    ]  # fmt: skip
    with FluxTraining(tiny_transformer(0), conditions) as training:
        names = dict(training.named_parameters())
    assert any(name.startswith("condition_modules.ControlNetImage_controlnet.") for name in names)
    assert len({id(value) for value in names.values()}) == len(names)


def test_the_processors_are_back_afterwards():
    transformer = tiny_transformer(0)
    before = dict(transformer.attn_processors)
    with FluxTraining(transformer):
        assert "Regional" in type(next(iter(transformer.attn_processors.values()))).__name__
    assert dict(transformer.attn_processors) == before


def test_what_cannot_train_is_refused():
    with pytest.raises(ValueError, match="InpaintRegion changes the latents after each step"):
        FluxTraining(tiny_transformer(0), [CASES["inpaint"].build()])
    with pytest.raises(TypeError, match="holds"):
        FluxTraining(tiny_transformer(0), ["entities"])
    with pytest.raises(ValueError, match="takes an embedded guidance, and the batch has none"):
        losses([], batch([], guidance=None))
    with FluxTraining(tiny_transformer(0, guidance_embeds=False)) as training:
        with pytest.raises(ValueError, match="takes no embedded guidance, and the batch has one"):
            training(batch([]))
        assert training(batch([], guidance=None)).isfinite().all()


@pytest.mark.parametrize("name", get_args(CacheSection.model_fields["name"].annotation))
def test_a_cache_that_skips_blocks_is_refused(name):
    needed = {"mag": {"num_inference_steps": 3, "mag_ratios": torch.ones(3)}, "tea": {"threshold": 0.2}}
    section, pipe = CacheSection(name=name, **needed.get(name, {})), tiny_pipeline(FluxConditionedPipeline)
    kind = type(cache_config(section, pipe)).__name__
    with running_with(section, pipe), pytest.raises(ValueError, match=rf"{kind}.*no gradients.*disable_cache"):
        FluxTraining(pipe.transformer)
    with FluxTraining(pipe.transformer) as training:
        assert training(batch([])).isfinite().all()


def test_a_bare_condition_names_wrong_fields():
    with pytest.raises(TypeError, match="no field 'negatives'; did you mean 'negative'"):
        bare_condition(EntityRegions, negatives="own")
    with pytest.raises(ValueError, match="`start` of ControlNetImage is 0.5, but training draws noise levels"):
        bare_condition(ControlNetImage, start=0.5)


def test_a_bare_condition_takes_former_names_and_values():
    with pytest.warns(FutureWarning, match="`on_negative` of EntityRegions.*`negative=True`.*`negative='own'`"):
        assert bare_condition(EntityRegions, on_negative=True).negative == "own"
    with pytest.warns(FutureWarning, match="'shared'.*'same'"):
        assert bare_condition(ControlNetImage, negative="shared").negative == "same"


def test_bfloat16_is_not_nan():
    transformer = tiny_transformer(0).to(torch.bfloat16)
    (entities,) = encode("entities")
    encoded = [{name: value.bfloat16() if value.is_floating_point() else value for name, value in entities.items()}]
    given = batch(encoded)
    given = batch(
        encoded,
        prompt_embeds=given.prompt_embeds.bfloat16(),
        pooled_prompt_embeds=given.pooled_prompt_embeds.bfloat16(),
    )
    with FluxTraining(transformer, [bare("entities")]) as training:
        loss = training(given)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()


def test_noise_is_mixed_at_the_level_that_a_bfloat16_model_is_told():
    transformer = tiny_transformer(seed=0).to(torch.bfloat16)
    given = batch({}, 2)
    low = {key: getattr(given, key).bfloat16() for key in ("prompt_embeds", "pooled_prompt_embeds", "guidance")}
    given = replace(given, sigma=torch.tensor([0.61725, 0.3021]), **low)
    seen = {}
    transformer.x_embedder.register_forward_pre_hook(lambda module, args: seen.update(noisy=args[0]))
    transformer.time_text_embed.register_forward_pre_hook(lambda module, args: seen.update(timestep=args[0]))
    with FluxTraining(transformer) as training, torch.no_grad():
        training(given)
    level = (seen["timestep"].float() / 1000)[:, None, None]
    assert level.flatten().tolist() == pytest.approx([0.616, 0.302])
    assert torch.equal(seen["noisy"], ((1 - level) * given.latents + level * given.noise).bfloat16())
