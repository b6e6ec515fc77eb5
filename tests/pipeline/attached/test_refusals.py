"""What cannot work is refused before the first step, by an error that names both sides."""

from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from benchmarks.support.conditions import CASES
from diffusers_flux_ext import (
    EntityRegions,
    FillMask,
    InpaintRegion,
    Step1XInstruction,
    attach_conditions,
    attached_conditions,
    detach_conditions,
)
from diffusers_flux_ext.testing import seeded, tiny_pipeline
from tests.fixtures.stock_pipelines import CALLS, CONTROL, IMAGE, MASKED, draw, stock_pipeline


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Forward passes of transformers that have begun."""
    begun: list[Any] = []
    forward = FluxTransformer2DModel.forward

    def count(*args: Any, **kwargs: Any) -> Any:
        begun.append(1)
        return forward(*args, **kwargs)

    monkeypatch.setattr(FluxTransformer2DModel, "forward", count)
    return begun


def refused(pipe: Any, conditions: list[Any], error: type[Exception], message: str, **arguments: Any) -> None:
    with attach_conditions(pipe, conditions), pytest.raises(error, match=message):
        draw(pipe, **arguments)


@pytest.mark.parametrize("case", ["fill", "flex", "channels"])
@pytest.mark.parametrize("name", CALLS)
def test_channels(runs, name, case):
    condition = CASES[case].build()
    refused(stock_pipeline(name), [condition], ValueError, f"{type(condition).__name__} adds .* channels.* and {name}")
    assert not runs


@pytest.mark.parametrize("name", MASKED)
def test_pasting(name):
    with pytest.raises(ValueError, match=f"FillMask decides the pixels .* and {name} decides them by `mask_image`"):
        attach_conditions(stock_pipeline(name), FillMask(IMAGE, (0, 0, 16, 16)))


@pytest.mark.parametrize("name", ["FluxKontextPipeline", "FluxKontextInpaintPipeline"])
def test_a_second_set_of_references(runs, name):
    message = f"ReferenceImages decides the positions of reference images, and the image of {name}"
    refused(stock_pipeline(name), [CASES["references"].build()], ValueError, message)
    assert not runs


def step1x(**overrides: Any) -> Step1XInstruction:
    return Step1XInstruction(**{**CASES["step1x"].inputs, **overrides})


@pytest.mark.parametrize("rescale_above", [0.6, 0.0])
def test_rules_of_guidance(runs, rescale_above):
    guided: dict[str, Any] = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
    message = "Step1XInstruction has its own rule of guidance at step 0, and FluxPipeline combines"
    refused(tiny_pipeline(FluxPipeline), [step1x(rescale_above=rescale_above)], ValueError, message, **guided)
    assert not runs


def test_a_rule_of_guidance_that_never_applies_is_none(runs):
    pipe = tiny_pipeline(FluxPipeline)
    with attach_conditions(pipe, [step1x(rescale_above=None)]):
        draw(pipe, negative_prompt="ugly", true_cfg_scale=2.0)
    assert len(runs) == 6


def test_conditions_that_refuse_each_other(runs):
    pipe = tiny_pipeline(FluxPipeline)
    with pytest.raises(ValueError, match="InpaintRegion and InpaintRegion decides the pixels"):
        attach_conditions(pipe, [CASES["inpaint"].build(), CASES["inpaint"].build()])
    refused(pipe, [CASES["prompt"].build(), CASES["nexus-gen"].build()], ValueError, "ReplacedPrompt and NexusGen")
    assert not runs


def test_inpainting_without_known_noise(runs):
    pipe = stock_pipeline("FluxImg2ImgPipeline")
    latents = torch.randn(1, 6, 64, generator=seeded(1))
    message = "InpaintRegion` must know the noise.*`latents` were given together with `image`"
    refused(pipe, [CASES["inpaint"].build()], ValueError, message, latents=latents)
    assert not runs


def test_numbers_that_differ(runs):
    pipe = tiny_pipeline(FluxPipeline)
    images = [IMAGE[0], CONTROL[0], IMAGE[0]]
    condition = InpaintRegion(images, (0.0, 0.0, 0.5, 1.0))
    refused(pipe, [condition], ValueError, "inputs for 3 samples, but there are 2 prompts", prompt=["a cat", "a dog"])
    assert not runs


def test_conditions_without_a_text_encoder():
    pipe = tiny_pipeline(FluxPipeline)
    texts = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), pipe.encode_prompt("a cat", max_sequence_length=16)))
    parts = {**pipe.components, "text_encoder_2": None, "tokenizer_2": None}
    bare = FluxPipeline(**parts)
    refused(bare, [CASES["entities"].build()], ValueError, "encoded with T5, but this pipeline", prompt=None, **texts)


def test_attaching_twice():
    pipe = tiny_pipeline(FluxPipeline)
    handle = attach_conditions(pipe, EntityRegions(["a cat"], [(0.0, 0.0, 0.5, 1.0)]))
    with pytest.raises(ValueError, match=r"FluxPipeline has conditions already: \['EntityRegions'\]"):
        attach_conditions(pipe, [])
    assert [type(each) for each in attached_conditions(pipe)] == [EntityRegions]
    detach_conditions(pipe)
    detach_conditions(pipe)
    assert attached_conditions(pipe) == []
    with attach_conditions(pipe, []):
        # The first handle belongs to what is gone.
        handle.detach()
        assert "_flux_ext_attached" in vars(pipe)


def test_wrong_conditions():
    with pytest.raises(TypeError, match=r"takes conditions such as .*holds \['str'\]"):
        attach_conditions(tiny_pipeline(FluxPipeline), ["a cat"])


class LaterTransformer(FluxTransformer2DModel):
    """A transformer whose pipeline gives it what is not known here."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs, image_masks=torch.ones(1))


def test_unknown_arguments_of_the_transformer(runs):
    pipe = tiny_pipeline(FluxPipeline)
    pipe.transformer.__class__ = LaterTransformer
    refused(pipe, [CASES["text"].build()], ValueError, r"gives the transformer \['image_masks'\]")
    assert not runs


class TwiceTransformer(FluxTransformer2DModel):
    """A transformer that a loop calls once more than it has prompts."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        super().__call__(*args, **kwargs)
        return super().__call__(*args, **kwargs)


def test_more_calls_than_branches():
    pipe = tiny_pipeline(FluxPipeline)
    pipe.transformer.__class__ = TwiceTransformer
    message = "FluxPipeline calls its transformer more than 1 times in the step 0"
    refused(pipe, [CASES["text"].build()], RuntimeError, message)


def test_a_step_that_conditions_do_not_see():
    pipe = tiny_pipeline(FluxPipeline)
    transformer = pipe.transformer
    # A call around `__call__` runs no hooks.
    pipe.transformer.__class__ = type("Bypass", (type(transformer),), {"__call__": type(transformer).forward})
    refused(pipe, [CASES["text"].build()], RuntimeError, "FluxPipeline made the step 0 without a call")
