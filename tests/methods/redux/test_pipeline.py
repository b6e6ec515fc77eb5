"""Redux: laws, strengths, masks, the prompt's scales, branches, batches, inputs, files and saving."""

import numpy as np
import pytest
import torch
from diffusers import ReduxImageEncoder
from safetensors.torch import save_file

from benchmarks.support.tiny.controlnet import PICTURE
from benchmarks.support.tiny.ip_adapter import image_embeds, picture, tiny_ip_adapter
from benchmarks.support.tiny.redux import patch_embeds, redux_modules, tiny_redux_embedder
from benchmarks.support.tiny.synthetic import ReplacedPrompt
from conversion_scripts import convert_redux
from diffusers_flux_ext import (
    EntityRegions,
    FillMask,
    FluxConditionedPipeline,
    InpaintRegion,
    IPAdapterImages,
    ReduxImages,
    load_redux_embedder,
)
from diffusers_flux_ext.inputs.token_grids import evenly_spread, merge_tokens
from diffusers_flux_ext.inputs.vision import embed_images, image_processor_for
from diffusers_flux_ext.testing import call_kwargs, different, quiet, seeded, tiny_pipeline, tiny_transformer


pytestmark = pytest.mark.versions
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
LEFT = (0.0, 0.0, 0.34, 1.0)
MODULES = redux_modules()


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


def redux(images=None, **arguments):
    given = {} if "image_embeds" in arguments else {"images": picture(0) if images is None else images}
    return ReduxImages(**{**MODULES, **given, **arguments})


def draw(pipe, *conditions, **arguments):
    return pipe(**call_kwargs(conditions=conditions, **{"num_inference_steps": 2, **arguments})).images


class Seen:
    """The text of every call of the transformer."""

    def __init__(self, pipe):
        self.pipe, self.texts, self.pooled = pipe, [], []

    def __enter__(self):
        def keep(_, args, kwargs):
            self.texts.append(kwargs["encoder_hidden_states"])
            self.pooled.append(kwargs["pooled_projections"])

        self.handle = self.pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.handle.remove()


class TestLaws:
    @pytest.mark.parametrize("combine", ["groups", "sum"])
    @pytest.mark.parametrize("more", [{}, {"region": LEFT}, {"negative": "same"}], ids=["", "region", "same"])
    def test_strength_zero_is_no_condition(self, pipe, combine, more):
        plain = draw(pipe, **GUIDED)
        assert torch.equal(
            draw(pipe, redux([picture(0), picture(1)], scale=0, combine=combine, **more), **GUIDED), plain
        )
        assert different(draw(pipe, redux(), **GUIDED), plain)

    def test_a_picture_of_strength_zero_is_left_out(self, pipe):
        # The vision model encodes two images here and one there, for which kernels may round otherwise.
        both = redux([picture(0), picture(1)], scale=[0, 0.7])
        torch.testing.assert_close(draw(pipe, both), draw(pipe, redux([picture(1)], scale=0.7)), atol=1e-5, rtol=0)

    def test_the_prompt_is_kept(self, pipe):
        assert different(draw(pipe, redux()), draw(pipe, redux(), prompt="a blue house"))
        gone = redux(prompt_scale=0, pooled_scale=0)
        assert torch.equal(draw(pipe, gone), draw(pipe, gone, prompt="a blue house"))

    def test_the_scales_reach_the_prompt_alone(self, pipe):
        with Seen(pipe) as plain:
            draw(pipe, redux(), num_inference_steps=1)
        with Seen(pipe) as scaled:
            draw(pipe, redux(prompt_scale=0.5, pooled_scale=-2.0), num_inference_steps=1)
        factors = torch.tensor([1.0] * 9 + [0.5] * 16)[:, None]
        torch.testing.assert_close(scaled.texts[0], plain.texts[0] * factors)
        torch.testing.assert_close(scaled.pooled[0], plain.pooled[0] * -2.0)


def test_every_module_counts(pipe):
    others, processor = redux_modules(1), image_processor_for(MODULES["image_encoder"])
    processor.image_mean = [0.2, 0.3, 0.4]
    changes = [*({name: module} for name, module in others.items()), {"image_processor": processor}]
    assert all(different(draw(pipe, redux(**change)), draw(pipe, redux())) for change in changes)


class TestStrength:
    def test_merging(self):
        tokens = torch.randn(2, 36, 5, generator=seeded())
        assert merge_tokens(tokens, 1.0) is tokens
        torch.testing.assert_close(merge_tokens(tokens, 1e-9), tokens.mean(dim=1, keepdim=True))
        for count in (2, 9, 20, 35):
            merged = merge_tokens(tokens, count / 36)
            assert merged.shape == (2, count, 5)
            assert merged.min() >= tokens.min()
            assert merged.max() <= tokens.max()
        same = torch.ones(1, 36, 1)
        torch.testing.assert_close(merge_tokens(same, 0.4), torch.ones(1, 14, 1))

    def test_neighbours_are_merged(self):
        rows = torch.arange(12.0).repeat_interleave(12)[None, :, None]
        kept = rows[:, evenly_spread(12, 12, 0.25)]
        assert (merge_tokens(rows, 0.25) - kept).abs().max() < 1.5

    def test_the_effect_grows_evenly_from_nothing(self, pipe):
        """On smooth patches of 12 x 12; a factor of the tokens instead has its full effect from the start on."""
        smooth = torch.nn.functional.interpolate(patch_embeds(2, 1, 12, 3, 3), size=12, mode="bicubic")
        embeds = smooth.flatten(2).mT
        shares = [index / 12 for index in range(13)]

        def effects(**more):
            images = [draw(pipe, redux(scale=s, image_embeds=embeds, **more), num_inference_steps=1) for s in shares]
            return torch.stack([(image - images[0]).norm() for image in images])

        merged, scaled = effects(), effects(combine="sum")
        assert (merged.diff() > 0).all()
        assert merged.diff().max() < 0.4 * merged[-1]
        assert scaled[1] > 0.8 * scaled[-1]

    def test_every_strength_differs(self, pipe):
        embeds = patch_embeds(2, 1, 144, 12)
        images = [draw(pipe, redux(scale=s, image_embeds=embeds), num_inference_steps=1) for s in (0.5, 0.51, 0.52)]
        assert different(images[0], images[1])
        assert different(images[1], images[2])


class TestMasks:
    def test_nobody_else_sees_a_masked_picture(self, pipe):
        """After one block, a change of the picture changes the text nowhere and the target inside the mask only."""
        changed = []
        for seed in (0, 1):
            kept = []
            handle = pipe.transformer.transformer_blocks[0].register_forward_hook(
                lambda _, inputs, output: kept.append(output)
            )
            draw(pipe, redux(picture(seed), region=LEFT), num_inference_steps=1)
            handle.remove()
            changed.append(kept[0])
        text, image = ((one - other).abs().amax(dim=(0, 2)) > 1e-6 for one, other in zip(*changed))
        assert text.tolist() == [True] * 9 + [False] * 16
        # The target may be sorted: two of its six tokens lie in the left third.
        assert image.sum() == 2

    def test_one_for_each_picture(self, pipe):
        two = [picture(0), picture(1)]
        right = (0.66, 0.0, 1.0, 1.0)
        images = [
            draw(pipe, redux(two, region=mask)) for mask in (None, LEFT, [LEFT, right], [right, LEFT], [LEFT, None])
        ]
        for index, image in enumerate(images):
            assert all(different(image, other) for other in images[:index])
        assert torch.equal(draw(pipe, redux(two, region=[None, None])), images[0])

    def test_an_empty_one_is_warned_of_and_changes_nothing(self, pipe, monkeypatch):
        said = []
        monkeypatch.setattr("diffusers_flux_ext.methods.redux.inputs.logger.warning", said.append)
        images = draw(pipe, redux(region=np.zeros((32, 48))))
        assert ["covers no token of the 48 x 32 canvas" in message for message in said] == [True]
        torch.testing.assert_close(images, draw(pipe), atol=1e-5, rtol=0)


class TestBranches:
    @pytest.mark.parametrize("negative, lengths", [(None, [25, 16]), ("same", [25, 25])])
    def test_which_one_has_the_picture(self, pipe, negative, lengths):
        with Seen(pipe) as seen:
            draw(pipe, redux(negative=negative, prompt_scale=0), num_inference_steps=1, **GUIDED)
        assert [text.shape[1] for text in seen.texts] == lengths
        assert not seen.texts[0][:, 9:].any()
        assert bool(seen.texts[1][:, -16:].any()) == (negative is None)


class TestTogether:
    def test_only_scales_clash_with_another_prompt(self, pipe):
        assert different(draw(pipe, redux(), ReplacedPrompt()), draw(pipe, ReplacedPrompt()))
        for scale in ("prompt_scale", "pooled_scale"):
            with pytest.raises(ValueError, match="ReduxImages and ReplacedPrompt replaces the prompt"):
                draw(pipe, redux(**{scale: 0.5}), ReplacedPrompt())
        draw(pipe, redux(pooled_scale=0.5), EntityRegions(["a red dog"], [LEFT], negative="own"), **GUIDED)

    def test_fill_and_entities(self):
        pipe = tiny_pipeline(
            FluxConditionedPipeline, transformer=tiny_transformer(0, in_channels=384, out_channels=64)
        )
        parts = [FillMask(PICTURE, LEFT), redux(region=LEFT), EntityRegions(["a red dog"], [LEFT])]
        images = draw(pipe, *parts, **GUIDED)
        torch.testing.assert_close(images, draw(pipe, *parts[::-1], **GUIDED), atol=1e-5, rtol=0)
        assert all(different(images, draw(pipe, *(p for p in parts if p is not part), **GUIDED)) for part in parts[1:])

    def test_ip_adapter_and_inpainting(self, pipe):
        parts = [IPAdapterImages(tiny_ip_adapter(1), image_embeds=image_embeds(4)), InpaintRegion(PICTURE, LEFT)]
        images = draw(pipe, *parts, redux(scale=0.6))
        torch.testing.assert_close(images, draw(pipe, redux(scale=0.6), *parts), atol=1e-5, rtol=0)
        assert different(images, draw(pipe, *parts))


class TestBatches:
    def test_they_are_their_samples(self, pipe):
        latents = torch.randn(4, 6, 64, generator=seeded(5))
        prompts = ["a cat", "a tree"]
        images, masks = [[picture(0), picture(1)], [picture(2), picture(3)]], [[LEFT, None], [None, LEFT]]
        shared = {"scale": [0.6, 1.0], "prompt_scale": 0.8, "negative": "same"}
        together = draw(
            pipe,
            redux(images, region=masks, **shared),
            prompt=prompts,
            num_images_per_prompt=2,
            latents=latents,
            **GUIDED,
        )
        for index in (0, 1, 2, 3):
            condition = redux(images[index // 2], region=masks[index // 2], **shared)
            one = {"prompt": prompts[index // 2], "latents": latents[index : index + 1]}
            alone = draw(pipe, condition, **one, **GUIDED)
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)

    def test_embeddings_take_the_pictures_place(self, pipe):
        given = [[picture(0)], [picture(1)]]
        embeds = embed_images(given, MODULES["image_encoder"], patches=True)
        two = {"prompt": ["a cat", "a tree"]}
        for kind in (embeds, embeds.numpy()):
            assert torch.equal(draw(pipe, redux(image_embeds=kind), **two), draw(pipe, redux(given), **two))
        one = draw(pipe, redux(image_embeds=embeds[1]))
        torch.testing.assert_close(one, draw(pipe, redux(picture(1))), atol=1e-5, rtol=0)

    def test_three_prompts_for_two(self, pipe):
        with pytest.raises(ValueError, match="2 samples, but there are 3 prompts"):
            draw(pipe, redux([[picture(0)], [picture(1)]]), prompt=["a", "b", "c"])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"scale": 1.2}, ValueError, r"in \[0, 1\], got \[1.2\].*combine='sum'"),
        ({"scale": [0.1, 0.2]}, ValueError, "2 numbers, but 1 are needed"),
        ({"scale": "strong"}, TypeError, "must be a number .*got 'strong'"),
        ({"prompt_scale": float("nan")}, ValueError, "`prompt_scale`.*finite"),
        ({"pooled_scale": None}, TypeError, "`pooled_scale`.*a number .*got None"),
        ({"region": [LEFT, LEFT]}, ValueError, r"lists of the lengths \[2\], but 1 groups"),
        ({"negative": "zeros"}, ValueError, "`negative` of ReduxImages must be one of .*'zeros'"),
        ({"combine": "mean"}, ValueError, "`combine` of ReduxImages must be one of .*'mean'"),
        ({"image_embedder": None}, TypeError, "NoneType.*load_redux_embedder"),
        ({"images": []}, ValueError, "at least one image"),
        ({"images": None}, ValueError, "Exactly one of `images` .*and `image_embeds`"),
        ({"image_embeds": patch_embeds()}, ValueError, "Exactly one of `images` .*and `image_embeds`"),
        ({"images": None, "image_embeds": torch.zeros(9, 12)}, ValueError, r"the shape \(images.*got \(9, 12\)"),
    ],
)
def test_bad_inputs(arguments, error, message):
    with pytest.raises(error, match=message):
        ReduxImages(**{"images": picture(0), **MODULES, **arguments})


def test_parts_that_do_not_fit(pipe):
    with pytest.raises(ValueError, match="tokens of width 44.*text is 40"):
        draw(pipe, redux(image_embedder=tiny_redux_embedder(0, 44)))
    with pytest.raises(ValueError, match="is 10 wide, but the `image_embedder` takes 12"):
        draw(pipe, redux(image_embeds=torch.zeros(1, 9, 10)))
    with pytest.raises(ValueError, match="no `image_encoder`"):
        draw(pipe, redux(image_encoder=None))
    with pytest.raises(ValueError, match="`image_embedder` of ReduxImages is torch.bfloat16"):
        draw(pipe, redux(image_embedder=tiny_redux_embedder().to(torch.bfloat16)))


def test_training_reaches_the_embedder(pipe):
    embedder = tiny_redux_embedder().requires_grad_(True)
    condition = redux(image_embeds=patch_embeds(), scale=0.5, image_embedder=embedder)
    with torch.enable_grad():
        [(_, tokens)] = condition._tokens(patch_embeds()[None])
        tokens.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in embedder.parameters())


def test_bfloat16_is_finite():
    pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
    parts = {name: module.to(torch.bfloat16) for name, module in redux_modules().items()}
    images = draw(
        pipe,
        redux([picture(0), picture(1)], scale=[0.5, 1.0], prompt_scale=0.9, region=[LEFT, None], **parts),
        **GUIDED,
    )
    assert torch.isfinite(images.float()).all()


def test_the_pipelines_vision_model_is_saved_with_it(tmp_path):
    pipe = tiny_pipeline(FluxConditionedPipeline, image_encoder=MODULES["image_encoder"])
    condition = redux(image_encoder=None)
    expected = draw(pipe, condition)
    assert torch.equal(expected, draw(pipe, redux()))
    pipe.save_pretrained(tmp_path)
    loaded = quiet(FluxConditionedPipeline.from_pretrained(tmp_path))
    assert torch.equal(draw(loaded, condition), expected)
    assert torch.equal(draw(quiet(FluxConditionedPipeline.from_pipe(loaded)), condition), expected)


class TestFiles:
    def equal(self, one, other):
        assert one.config.redux_dim == other.config.redux_dim
        assert one.config.txt_in_features == other.config.txt_in_features
        weights = other.state_dict()
        return all(torch.equal(weight, weights[key]) for key, weight in one.state_dict().items())

    def test_every_published_form(self, tmp_path):
        embedder = tiny_redux_embedder()
        weights = dict(embedder.state_dict())
        single = tmp_path / "flux1-redux-dev.safetensors"
        save_file(weights, single)
        embedder.save_pretrained(tmp_path / "repository" / "image_embedder")
        sources = [single, tmp_path, tmp_path / "repository", tmp_path / "repository" / "image_embedder", weights]
        wrapped = {f"module.{key}": weight for key, weight in weights.items()}
        for source in [*sources, str(single), wrapped]:
            assert self.equal(load_redux_embedder(source), embedder)
        assert load_redux_embedder(single, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
        assert convert_redux.main([str(single), str(tmp_path / "folder")]) == 0
        assert self.equal(ReduxImageEncoder.from_pretrained(tmp_path / "folder"), embedder)
        assert convert_redux.main([str(single), str(tmp_path / "folder")]) == 1

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda weights: {"up.weight": weights["redux_up.weight"]}, "not an embedder of Redux.*up.weight"),
            (lambda weights: {**weights, "more": torch.zeros(1)}, "missing, surplus.*more"),
            (lambda weights: {**weights, "redux_up.bias": torch.zeros(1)}, "missing, surplus.*redux_up.bias"),
        ],
    )
    def test_others_are_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            load_redux_embedder(change(dict(tiny_redux_embedder().state_dict())))

    def test_a_folder_without_one(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="not have any of.*flux1-redux-dev"):
            load_redux_embedder(tmp_path)
