"""Insert-Anything: pasting, batches, its LoRA, other conditions, inputs, saving and sharing."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxFillPipeline
from safetensors.torch import save_file

import diffusers_flux_ext
from benchmarks.support.tiny.insert_anything import pictures, region
from benchmarks.support.tiny.ip_adapter import picture
from benchmarks.support.tiny.redux import redux_modules
from diffusers_flux_ext import (
    EntityRegions,
    FillMask,
    FluxConditionedPipeline,
    FluxInsertAnythingPipeline,
    ReduxImages,
)
from diffusers_flux_ext.canvas import Canvas
from diffusers_flux_ext.inputs.masks import mask_to_pixels
from diffusers_flux_ext.methods.insert_anything.diptych import make_diptych, paste_panel
from diffusers_flux_ext.testing import call_kwargs, quiet, seeded, tiny_components, tiny_pipeline, tiny_transformer


CASE = pictures()
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
SHORT = {"prompt": None, "width": None, "num_inference_steps": 2}


def wide_transformer():
    return tiny_transformer(0, in_channels=384, out_channels=64)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxInsertAnythingPipeline, transformer=wide_transformer(), **redux_modules())


def draw(pipe, **arguments):
    return pipe(**call_kwargs(**{**SHORT, "output_type": "np", **CASE, **arguments})).images


def differ(one, other):
    return bool(np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3)


def source(case=CASE):
    return np.asarray(case["source_image"]) / np.float32(255)


class TestResult:
    def test_it_is_the_two_conditions_and_pasting(self, pipe):
        diptych = make_diptych(**CASE, size=32)
        conditions = [
            FillMask(diptych.image, diptych.mask, paste_back=False),
            ReduxImages(diptych.reference, 0.6, **redux_modules()),
        ]
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        zeros = {"prompt_embeds": torch.zeros(1, 16, 40), "pooled_prompt_embeds": torch.zeros(1, 24)}
        arguments = call_kwargs(**{**SHORT, "width": 64, "guidance_scale": 30.0, **zeros})
        canvas = plain(**{**arguments, "output_type": "pil"}, conditions=conditions).images[0]
        expected = paste_panel(diptych, canvas.crop((32, 0, 64, 32)))
        assert np.array_equal(draw(pipe, redux_scale=0.6, output_type="pil")[0], expected)
        assert np.array_equal(draw(pipe, redux_scale=0.6, output_type="pil", paste_back=None)[0], canvas)

    def test_kinds_of_output(self, pipe):
        arrays = draw(pipe)
        assert arrays.shape == (1, 90, 120, 3)
        assert np.array_equal(np.asarray(draw(pipe, output_type="pil")[0]) / np.float32(255), arrays[0])
        assert np.array_equal(draw(pipe, output_type="pt").permute(0, 2, 3, 1).numpy(), arrays)
        assert draw(pipe, output_type="latent").shape == (1, 8, 64)
        assert draw(pipe, paste_back=None).shape == (1, 32, 64, 3)
        assert np.array_equal(pipe(**call_kwargs(**SHORT, **CASE), return_dict=False)[0], draw(pipe, output_type="pt"))

    def test_what_is_kept(self, pipe):
        top, bottom, left, right = make_diptych(**CASE).box
        inside = np.zeros((90, 120), dtype=bool)
        inside[top + 2 : bottom - 2, left + 2 : right - 2] = True
        crop, mask = draw(pipe)[0], draw(pipe, paste_back="mask")[0]
        assert np.array_equal(crop[~inside], source()[~inside])
        assert (np.abs(crop - source()).max(axis=2)[inside] > 0).mean() > 0.9
        grown = make_diptych(**CASE).region & inside
        assert np.array_equal(mask[~grown], source()[~grown])
        assert np.array_equal(mask[grown], crop[grown])

    def test_every_input_counts(self, pipe):
        changes = [
            {"source_image": picture(3, (120, 90))},
            {"source_mask": region((120, 90), (10, 10, 50, 40))},
            {"reference_image": picture(4, (80, 100))},
            {"reference_mask": None},
            {"redux_scale": 0.3},
            {"prompt": "a cat"},
            {"guidance_scale": 3.5},
            {"height": 48},
        ]
        base = draw(pipe, paste_back="mask")
        assert [change for change in changes if not differ(draw(pipe, paste_back="mask", **change), base)] == []

    def test_kinds_of_pictures_and_masks(self, pipe):
        expected = draw(pipe)
        array, mask = np.asarray(CASE["source_image"]), np.asarray(CASE["source_mask"])
        for kind in (array, torch.from_numpy(array.copy()).permute(2, 0, 1), CASE["source_image"].convert("RGBA")):
            assert np.array_equal(draw(pipe, source_image=kind), expected)
        for kind in (mask, mask > 0, torch.from_numpy(mask.copy()), CASE["source_mask"].convert("1")):
            assert np.array_equal(draw(pipe, source_mask=kind), expected)
        corner = {"source_mask": (30, 20, 60, 50)}
        canvas = Canvas(90, 120, 1, 1, torch.device("cpu"), torch.float32)
        pixels = mask_to_pixels(corner["source_mask"], canvas).numpy()
        assert np.array_equal(draw(pipe, **corner), draw(pipe, source_mask=pixels))

    def test_defaults_are_those_of_the_published_weights(self, pipe, monkeypatch):
        class Enough(Exception):
            pass

        def stop(module, args, kwargs):
            assert kwargs["img_ids"].shape == (48 * 96, 3)
            assert kwargs["guidance"].tolist() == [30.0]
            raise Enough

        shown = inspect.signature(FluxInsertAnythingPipeline.__call__).parameters
        assert (shown["num_inference_steps"].default, shown["guidance_scale"].default) == (50, 30.0)
        monkeypatch.setattr(
            "diffusers_flux_ext.methods.fill.condition.encode_image", lambda vae, image: torch.zeros(1, 16, 96, 192)
        )
        handle = pipe.transformer.register_forward_pre_hook(stop, with_kwargs=True)
        with pytest.raises(Enough):
            pipe(**CASE, max_sequence_length=4)
        handle.remove()

    def test_without_pictures_it_is_the_plain_pipeline(self):
        modules = {**redux_modules(), "transformer": tiny_transformer(0)}
        pipe = tiny_pipeline(FluxInsertAnythingPipeline, **modules)
        plain = quiet(FluxConditionedPipeline.from_pipe(pipe))
        images = [each(**call_kwargs(num_inference_steps=2, guidance_scale=30.0)).images for each in (pipe, plain)]
        assert torch.equal(*images)


class TestBatches:
    def test_they_are_their_samples(self, pipe):
        latents = torch.randn(4, 8, 64, generator=seeded(5))
        cases, prompts = [pictures(), pictures((90, 70), (5, 5, 40, 40), seed=1)], ["a cat", "a dog"]
        both = {name: [case[name] for case in cases] for name in CASE}
        more = {"num_images_per_prompt": 2, "output_type": "pil", **GUIDED}
        together = draw(pipe, **both, prompt=prompts, latents=latents, **more)
        assert [image.size for image in together] == [(120, 90), (120, 90), (90, 70), (90, 70)]
        for index, image in enumerate(together):
            one = {"prompt": prompts[index // 2], "latents": latents[index : index + 1], "output_type": "pil"}
            alone = draw(pipe, **cases[index // 2], **one, **GUIDED)[0]
            assert np.abs(np.asarray(image, dtype=int) - np.asarray(alone)).max() <= 1

    def test_one_for_all_and_one_for_each(self, pipe):
        references = [picture(1, (80, 100)), picture(2, (80, 100))]
        images = draw(pipe, reference_image=references)
        assert images.shape == (2, 90, 120, 3)
        assert draw(pipe, prompt=["a cat", "a dog"], reference_image=references).shape == (2, 90, 120, 3)
        assert draw(pipe, prompt=["a cat", "a dog"]).shape == (2, 90, 120, 3)

    def test_sizes_that_differ_are_no_array(self, pipe):
        sources = [picture(0, (120, 90)), picture(0, (90, 120))]
        with pytest.raises(ValueError, match="differ in size.*'np' batch. Take 'pil'"):
            draw(pipe, source_image=sources)
        assert len(draw(pipe, source_image=sources, output_type="pil")) == 2


class TestTogether:
    def test_entities_on_the_canvas(self, pipe):
        entity = EntityRegions(["a red hat"], [(0.5, 0.0, 1.0, 1.0)])
        images = draw(pipe, conditions=[entity], prompt="a photo", **GUIDED)
        assert differ(images, draw(pipe, prompt="a photo", **GUIDED))

    def test_its_lora(self, tmp_path):
        """One in diffusers' layout on the layers that the published one changes."""
        pipe = tiny_pipeline(FluxInsertAnythingPipeline, transformer=wide_transformer(), **redux_modules())
        before = draw(pipe)
        layers = {
            "x_embedder": (384, 32),
            "transformer_blocks.0.norm1.linear": (32, 192),
            "transformer_blocks.1.attn.to_q": (32, 32),
            "transformer_blocks.1.attn.to_out.0": (32, 32),
            "transformer_blocks.0.ff.net.2": (128, 32),
            "single_transformer_blocks.0.norm.linear": (32, 96),
            "single_transformer_blocks.1.proj_mlp": (32, 128),
            "single_transformer_blocks.2.proj_out": (160, 32),
        }
        weights = {}
        for name, (inputs, outputs) in layers.items():
            weights[f"transformer.{name}.lora_A.weight"] = torch.randn(4, inputs, generator=seeded(1)) * 0.3
            weights[f"transformer.{name}.lora_B.weight"] = torch.randn(outputs, 4, generator=seeded(2)) * 0.3
        save_file(weights, tmp_path / "lora.safetensors")
        pipe.load_lora_weights(tmp_path / "lora.safetensors")
        assert differ(draw(pipe), before)
        pipe.unload_lora_weights()
        assert np.array_equal(draw(pipe), before)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"source_mask": None}, "`source_mask` of the call are missing"),
        ({"source_image": None, "reference_image": None}, "`source_image`, `reference_image` of the call are missing"),
        ({"source_mask": np.zeros((90, 120))}, "`source_mask` is empty"),
        ({"reference_mask": np.zeros((100, 80))}, "0 pixels of `reference_image`, so it shows no object"),
        ({"reference_mask": region((80, 100), (3, 3, 6, 6))}, "pixels of `reference_image`, so it shows no object"),
        ({"reference_mask": (3, 3, 30, 4)}, "1 x 27 pixels"),
        ({"source_image": picture(0, (20, 10)), "source_mask": (3, 3, 5, 5)}, "must be at least 16"),
        (
            {"source_image": [CASE["source_image"]] * 2, "source_mask": [CASE["source_mask"]] * 3},
            "`source_image` does not go together",
        ),
        (
            {"source_image": [CASE["source_image"]] * 2, "prompt": ["a", "b", "c"]},
            "2 images, but there are 3 prompts",
        ),
        ({"width": 48}, "`width` must be twice `height`, got 32 x 48"),
        ({"paste_back": "all"}, "`paste_back` must be one of .*'all'"),
        ({"redux_scale": 2}, "`redux_scale` must be .*from 0 to 1, got 2"),
    ],
)
def test_bad_inputs(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, **arguments)


def test_the_former_name_of_the_scale(pipe):
    with (
        pytest.warns(FutureWarning, match="`redux_strength` of .*Pipeline is now called `redux_scale`"),
        pytest.raises(ValueError, match="`redux_scale` must be .*got 2"),
    ):
        draw(pipe, redux_strength=2)


def test_a_full_mask_is_warned_of(pipe, monkeypatch):
    said = []
    logger = "diffusers_flux_ext.methods.insert_anything.diptych.logger"
    monkeypatch.setattr(f"{logger}.warning", said.append)
    images = draw(pipe, source_mask=(0.0, 0.0, 1.0, 1.0))
    assert ["covers all of it" in message for message in said] == [True]
    assert differ(images, source()[None])
    assert np.array_equal(images[0, :2], source()[:2])


def test_no_prompt_has_no_padding(pipe):
    assert np.array_equal(draw(pipe, mask_padding=True), draw(pipe))


def test_missing_components_are_named():
    pipe = tiny_pipeline(FluxInsertAnythingPipeline, transformer=wide_transformer())
    with pytest.raises(ValueError, match=r"no \['image_encoder', 'image_embedder'\]"):
        draw(pipe)


def test_no_text_encoder_is_needed(pipe):
    nothing = dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
    parts = {**tiny_components(0), **redux_modules(), **nothing, "transformer": wide_transformer()}
    without = quiet(FluxInsertAnythingPipeline(**parts))
    assert np.array_equal(draw(without), draw(pipe))


def test_a_saved_pipeline_draws_the_same_and_is_shared(pipe, tmp_path):
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path)
    for pipeline_class in (FluxInsertAnythingPipeline, DiffusionPipeline):
        loaded = quiet(pipeline_class.from_pretrained(tmp_path))
        assert type(loaded) is FluxInsertAnythingPipeline
        assert np.array_equal(draw(loaded), expected)
    fill = loaded.to_pipeline(FluxFillPipeline)
    again = quiet(FluxInsertAnythingPipeline.from_pipe(fill, **redux_modules()))
    assert np.array_equal(draw(again), expected)
    shim = diffusers_flux_ext.custom_pipeline("insert_anything")
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=shim, trust_remote_code=True)
    assert np.array_equal(draw(quiet(loaded)), expected)


def test_bfloat16_is_finite(pipe):
    pipe = tiny_pipeline(FluxInsertAnythingPipeline, transformer=wide_transformer(), **redux_modules())
    images = draw(pipe.to(torch.bfloat16), output_type="latent", **GUIDED)
    assert images.dtype == torch.bfloat16
    assert torch.isfinite(images.float()).all()
