"""What authors of conditions are promised of the tiny components."""

import pytest
import torch
from diffusers import FluxPipeline

from diffusers_flux_ext import testing
from diffusers_flux_ext.testing import (
    call_kwargs,
    different,
    randomise,
    seeded_generator,
    tiny_components,
    tiny_pipeline,
    tiny_tokenizers,
    tiny_transformer,
    tiny_vae,
)


MODELS = ("vae", "text_encoder", "text_encoder_2", "transformer")


def test_every_name_is_documented():
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)


@pytest.mark.parametrize("name", MODELS)
def test_no_parameter_hides_a_mistake(name):
    model = tiny_components()[name]
    assert not model.training
    for parameter in model.parameters():
        assert not parameter.requires_grad
        assert parameter.std() > 0 or parameter.numel() == 1
        assert not ((parameter == 0) | (parameter == 1)).any()


@pytest.mark.parametrize("name", MODELS)
def test_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(0)
    one = tiny_components(3)[name].state_dict()
    torch.manual_seed(1)
    same, other = tiny_components(3)[name].state_dict(), tiny_components(4)[name].state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key, value in one.items() if value.is_floating_point())


def test_components_share_no_weights_with_those_made_before():
    changed, untouched = tiny_transformer(), tiny_transformer()
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    again = tiny_transformer()
    for parameter, other in zip(untouched.parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, other)
        assert other.any()


def test_modules_of_ones_own_get_seeded_weights():
    def module() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.LayerNorm(5))

    one, same, other = (randomise(module(), seed) for seed in (1, 1, 2))
    x = torch.randn(3, 4, generator=seeded_generator(0, "x"))
    assert torch.equal(one(x), same(x))
    assert different(one(x), other(x))


def test_overrides_replace_entries_and_components():
    vae = tiny_vae(sample_size=512)
    pipe = tiny_pipeline(FluxPipeline, transformer=tiny_transformer(guidance_embeds=False), vae=vae)
    assert (pipe.vae, pipe.vae.config.sample_size, pipe.transformer.config.guidance_embeds) == (vae, 512, False)


def test_two_calls_draw_the_same_image():
    pipe = tiny_pipeline(FluxPipeline)
    one, same, other = pipe(**call_kwargs()), pipe(**call_kwargs()), pipe(**call_kwargs(prompt="a dog"))
    assert one.images.shape == (1, 3, 32, 48)
    assert torch.equal(one.images, same.images)
    assert different(one.images, other.images)


def test_tokenizers_know_words_and_spell_others():
    clip, t5 = tiny_tokenizers()
    assert len(t5("a red cat").input_ids) == 4
    assert clip("cat").input_ids != clip("zebra").input_ids
