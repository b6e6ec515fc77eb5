"""IPAdapterImages: pictures, encoders, and what is refused."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from benchmarks.support.tiny.ip_adapter import (
    XLABS,
    differ,
    image_embeds,
    picture,
    run,
    some_step,
    tiny_clip_vision,
    tiny_ip_adapter,
    tiny_siglip,
)
from diffusers_flux_ext import (
    Contribution,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    ImagePrompt,
    IPAdapterImages,
    predict_velocity,
)
from diffusers_flux_ext.attention.processor import regional_attention
from diffusers_flux_ext.encoded import EncodedConditions
from diffusers_flux_ext.inputs import numbers
from diffusers_flux_ext.inputs.vision import embed_images, image_processor_for
from diffusers_flux_ext.testing import quiet, tiny_pipeline


LEFT, RIGHT = (0.0, 0.0, 0.34, 1.0), (0.34, 0.0, 1.0, 1.0)
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}


class TestImages:
    @pytest.mark.parametrize("make", [tiny_siglip, tiny_clip_vision])
    def test_pictures_of_every_kind_give_one_embedding(self, make):
        encoder, rgb = make(), picture(3, (50, 40))
        array = np.asarray(rgb)
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
        kinds = [rgb, array, tensor, array / np.float32(255), tensor / 255, rgb.convert("RGBA")]
        embeds = embed_images(kinds, encoder)[0]
        assert embeds.shape == (6, 12)
        torch.testing.assert_close(embeds, embeds[:1].expand(6, -1), atol=1e-5, rtol=0)
        assert differ(embed_images(picture(4), encoder)[0], embeds)

    def test_pictures_are_their_embeddings(self, pipe, adapter):
        encoder = tiny_siglip()
        pictures = [picture(0), picture(1)]
        by_picture = run(pipe, IPAdapterImages(adapter, pictures, image_encoder=encoder))
        by_embeds = run(pipe, IPAdapterImages(adapter, image_embeds=embed_images(pictures, encoder)[0]))
        assert torch.equal(by_picture, by_embeds)

    def test_the_encoder_of_the_pipeline_is_the_default(self, adapter):
        encoder = tiny_clip_vision()
        pipe = tiny_pipeline(FluxConditionedPipeline, image_encoder=encoder)
        own = run(pipe, IPAdapterImages(adapter, picture(), image_encoder=encoder))
        assert torch.equal(run(pipe, IPAdapterImages(adapter, picture())), own)

    @pytest.mark.parametrize("make", [tiny_siglip, tiny_clip_vision])
    def test_a_pipeline_keeps_its_encoder(self, adapter, make, tmp_path):
        encoder = make(2)
        parts = {"image_encoder": encoder, "feature_extractor": image_processor_for(encoder)}
        pipe = tiny_pipeline(FluxConditionedPipeline, **parts)
        condition = IPAdapterImages(adapter, picture())
        expected = run(pipe, condition)
        pipe.save_pretrained(tmp_path)
        assert torch.equal(run(quiet(DiffusionPipeline.from_pretrained(tmp_path)), condition), expected)
        assert torch.equal(run(quiet(FluxEliGenPipeline.from_pipe(pipe)), condition), expected)

    def test_a_processor_of_ones_own(self, pipe, adapter):
        encoder = tiny_siglip()
        processor = image_processor_for(encoder)
        same = IPAdapterImages(adapter, picture(), image_encoder=encoder, image_processor=processor)
        plain = run(pipe, IPAdapterImages(adapter, picture(), image_encoder=encoder))
        assert torch.equal(run(pipe, same), plain)
        processor.image_mean = [0.1, 0.2, 0.3]
        assert differ(run(pipe, same), plain, 1e-6)


BAD = {
    "nothing": ({}, ValueError, "Exactly one of `images` .*and `image_embeds`"),
    "both": ({"images": picture(), "image_embeds": image_embeds()}, ValueError, "Exactly one of"),
    "window": ({"image_embeds": image_embeds(), "start": 0.7, "end": 0.2}, ValueError, "start=0.7 and end=0.2"),
    "scales": ({"image_embeds": image_embeds(), "scale": [1.0, 2.0]}, ValueError, "2 numbers, but 5 are needed"),
    "negative": (
        {"image_embeds": image_embeds(), "negative": "black"},
        ValueError,
        "one of .*'zeros', None.*got 'black'",
    ),
    "embeds": ({"image_embeds": torch.zeros(12)}, ValueError, r"the shape \(images, 12\) or .*got \(12,\)"),
    "width": ({"image_embeds": torch.zeros(1, 7)}, ValueError, r"\(prompts, images, 12\), got \(1, 7\)"),
    "encoder": ({"images": picture()}, ValueError, "but no `image_encoder`"),
    "empty": ({"images": [], "image_encoder": tiny_siglip()}, ValueError, r"holds \[0\] images"),
    "counts": (
        {"images": [[picture()], [picture()] * 2], "image_encoder": tiny_siglip()},
        ValueError,
        r"holds \[1, 2\] images",
    ),
    "mixed": ({"images": [picture(), [picture()]], "image_encoder": tiny_siglip()}, ValueError, "mixes lists"),
    "kind": (
        {"images": "cat.png", "image_encoder": tiny_siglip()},
        TypeError,
        "`images` of IPAdapterImages.*got 'cat.png'",
    ),
    "shape": ({"images": np.zeros((4, 4, 2)), "image_encoder": tiny_siglip()}, ValueError, r"got \(4, 4, 2\)"),
    "prompts": ({"image_embeds": torch.zeros(3, 1, 12)}, ValueError, "3 samples.*1 prompts"),
    "masks": ({"image_embeds": image_embeds(), "region": [LEFT, RIGHT]}, ValueError, "2 samples.*1 prompts"),
    "dtype": (
        {"adapter": tiny_ip_adapter(1).to(torch.bfloat16), "image_embeds": image_embeds()},
        ValueError,
        "`adapter` of IPAdapterImages is torch.bfloat16",
    ),
    "depth": (
        {"adapter": tiny_ip_adapter(1, num_blocks=4), "image_embeds": image_embeds()},
        ValueError,
        "4 blocks of 32 channels.*2 double and 3 single",
    ),
    "heads": (
        {"adapter": tiny_ip_adapter(1, attention_head_dim=8, num_attention_heads=4), "image_embeds": image_embeds()},
        ValueError,
        "32 channels in 4 heads.*32 channels in 2 heads",
    ),
    "after": (
        {"adapter": tiny_ip_adapter(1, **{**XLABS, "num_blocks": 5}), "image_embeds": image_embeds()},
        ValueError,
        "only the 2 double blocks",
    ),
    "adapter": ({"adapter": torch.nn.Linear(2, 2), "image_embeds": image_embeds()}, TypeError, "is a Linear"),
}


@pytest.mark.parametrize("arguments, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_an_error_before_the_first_step(pipe, arguments, error, message, monkeypatch):
    monkeypatch.setattr(pipe.transformer, "forward", None)
    with pytest.raises(error, match=message):
        run(pipe, IPAdapterImages(**{"adapter": tiny_ip_adapter(1), "start": 0.4, **arguments}))


def test_a_prompt_of_another_batch_is_refused(pipe):
    keys = torch.zeros(5, 3, 4, 2, 16)
    part = Contribution(attention_kwargs={"image_prompts": (ImagePrompt(keys, keys),)})
    with pytest.raises(ValueError, match=r"for \[3\] samples.*1 samples of 6"), regional_attention(pipe.transformer):
        predict_velocity(pipe.transformer, some_step(pipe, "cond"), [part])


def test_an_encoder_without_a_known_processor_asks_for_one():
    class Other(torch.nn.Module):
        config = type("Config", (), {"model_type": "dinov2"})

    with pytest.raises(ValueError, match="no default image processor for a Other.*`image_processor`"):
        embed_images(picture(), Other())


def test_what_a_phase_contributed_is_kept(pipe):
    """The cache of contributions is by branch and phase, so that a window neither leaks nor costs a second call."""
    condition = IPAdapterImages(tiny_ip_adapter(1), image_embeds=image_embeds(), start=0.5)
    encoded = EncodedConditions.from_tensors([condition], [{"image_embeds": image_embeds()[None]}])
    parts = [encoded.contributions(some_step(pipe, "cond", index, 4))[0] for index in range(4)]
    assert parts[0] is parts[1]
    assert parts[2] is parts[3]
    assert [bool(part.attention_kwargs) for part in parts] == [False, False, True, True]


def test_embeddings_as_an_array(pipe, adapter):
    embeds = image_embeds()
    images = [run(pipe, IPAdapterImages(adapter, image_embeds=given)) for given in (embeds, embeds.numpy())]
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": "0.5"}, TypeError, "got '0.5'"),
        ({"scale": float("nan")}, ValueError, "must be a finite number"),
        ({"negative_scale": 0.5, "negative": None}, ValueError, "`negative_scale` .*0.5, which has no effect"),
    ],
)
def test_scales_that_mean_nothing(adapter, arguments, error, message):
    with pytest.raises(error, match=message):
        IPAdapterImages(adapter, image_embeds=image_embeds(), **arguments)


def test_a_window_without_a_step_warns_once(pipe, adapter, monkeypatch):
    seen = []
    monkeypatch.setattr(numbers.logger, "warning", seen.append)
    run(pipe, IPAdapterImages(adapter, image_embeds=image_embeds(), start=0.4, end=0.6), **GUIDED)
    assert ["IPAdapterImages acts from 0.4 to 0.6" in text for text in seen] == [True]
