"""Nexus-Gen: wrong arguments are refused before work starts."""

import pytest
import torch

import diffusers_flux_ext
from benchmarks.support.tiny.nexus_gen import (
    HIDDEN,
    image_embeds,
    tiny_adapter,
)
from benchmarks.support.tiny.qwen_vl import tiny_mllm
from diffusers_flux_ext import (
    FluxNexusGenPipeline,
    NexusGenEmbedding,
)
from diffusers_flux_ext.testing import quiet, tiny_pipeline
from tests.methods.nexus_gen.drawing import PICTURE, WIDE, draw


pytestmark = pytest.mark.versions


EMBEDS = image_embeds()
BAD = {
    "no prompt": ({"prompt": None}, ValueError, "neither a `prompt` nor `image_embeds`"),
    "an empty list": ({"prompt": []}, ValueError, "`prompt` is an empty list"),
    "a number": ({"prompt": 5}, TypeError, "`prompt` must be a text or a list of texts, got 5"),
    "both": ({"image": PICTURE, "image_embeds": EMBEDS}, ValueError, "`image` .*and `image_embeds` .*both given"),
    "a prompt for T5": ({"prompt_2": "a dog"}, ValueError, "does not read `prompt_2`"),
    "another decoder": ({"decoder": "drawing"}, ValueError, "`decoder` must be one of .*'generation'.*got 'drawing'"),
    "another language": ({"language": "fr"}, ValueError, "`language` must be one of .*'en', 'zh'.*got 'fr'"),
    "too few pixels": ({"image": PICTURE, "max_pixels": 100}, ValueError, "`max_pixels` must be from 3136 .*got 100"),
    "two shapes": ({"prompt": ["a", "b"], "image": [PICTURE, WIDE]}, ValueError, "must have one shape.*2, 8.*4, 6"),
    "three pictures": ({"prompt": ["a", "b"], "image": [PICTURE] * 3}, ValueError, "2 texts and .* 3 images"),
    "a picture twice": ({"prompt": "<image> and <image>", "image": PICTURE}, ValueError, "3 times, got 2 images"),
    "no picture": ({"image": "cat.png"}, TypeError, "got 'cat.png'"),
    "another width": (
        {"image_embeds": torch.zeros(1, 81, 8)},
        ValueError,
        r"image_embeds.*length, 32\).*got \(1, 81, 8\)",
    ),
    "a missing grid": (
        {"image_embeds": {key: EMBEDS[key] for key in list(EMBEDS)[:2]}},
        ValueError,
        "has the entries",
    ),
    "unknown parts": ({"image_embeds": {"embeds": EMBEDS["image_embeds"]}}, ValueError, "has the entries .*'embeds'"),
    "no whole square": (
        {"image_embeds": torch.zeros(1, 80, HIDDEN), "decoder": "editing"},
        ValueError,
        "embeddings, got 80",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        draw(pipe, **arguments)


def test_bad_conditions(pipe):
    with pytest.raises(TypeError, match="`adapter` of NexusGenEmbedding is a Linear; expected a `NexusGenAdapter`"):
        NexusGenEmbedding(torch.nn.Linear(2, 2), "a cat")
    with pytest.raises(ValueError, match="Exactly one of `prompt` .*and `image_embeds`"):
        NexusGenEmbedding(tiny_adapter(), "a cat", image_embeds=EMBEDS)
    wide = diffusers_flux_ext.NexusGenAdapter(HIDDEN, 48)
    with pytest.raises(ValueError, match="width 48, but the transformer's text is 40"):
        draw(pipe, conditions=[NexusGenEmbedding(wide, "a cat")], image_embeds=EMBEDS)
    with pytest.raises(ValueError, match=r"has no \['mllm', 'mllm_processor'\]"):
        tiny_pipeline(FluxNexusGenPipeline).describe(PICTURE)
    stock = quiet(FluxNexusGenPipeline.from_pipe(pipe, mllm=tiny_mllm()))
    for ask in (draw, lambda other: other.describe(PICTURE)):
        with pytest.raises(TypeError, match="is a Qwen2_5_VLForConditionalGeneration; expected a `NexusGenModel`"):
            ask(stock)


@pytest.mark.parametrize("ask", ["encode_image_embeds", "describe"])
def test_what_asks_the_language_model_checks_its_options(pipe, ask):
    with pytest.raises(ValueError, match="`max_pixels` .*must be from 3136 .*got 100"):
        getattr(pipe, ask)("a cat" if ask == "encode_image_embeds" else PICTURE, max_pixels=100)
    with pytest.raises(ValueError, match="`language` .*one of .*got 'fr'"):
        pipe.encode_image_embeds("a cat", language="fr")
    for prompts, given, message in (([], PICTURE, "is an empty list"), ("a cat", [], "holds no image")):
        with pytest.raises(ValueError, match=message):
            pipe.encode_image_embeds(prompts, given)


def test_prompts_from_empty_to_too_long(pipe):
    assert draw(pipe, prompt="").isfinite().all()
    with pytest.raises(ValueError, match="The prompt makes 4[0-9]{3} tokens.*takes 4096"):
        draw(pipe, prompt="a" * 4100)
