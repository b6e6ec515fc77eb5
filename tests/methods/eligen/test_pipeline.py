"""EliGen: laws, batches, inputs and composition."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.support.tiny.synthetic import AddedChannels, AddedReference, AddedResiduals, AddedText
from diffusers_flux_ext import EntityRegions, FluxConditionedPipeline, FluxEliGenPipeline, InpaintRegion
from diffusers_flux_ext.attention.processor import FluxRegionalAttnProcessor
from diffusers_flux_ext.testing import call_kwargs, seeded, tiny_pipeline


pytestmark = pytest.mark.versions
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
ENTITIES = {"entity_prompts": ["a red dog", "a blue bird"], "entity_masks": [LEFT, RIGHT]}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxEliGenPipeline)


@pytest.fixture
def warnings(caplog):
    names = ("methods.eligen.condition", "inputs.text", "methods.inpaint.condition")
    loggers = [logging.getLogger(f"diffusers_flux_ext.{name}") for name in names]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield caplog
    for logger in loggers:
        logger.removeHandler(caplog.handler)


def test_entities_change_the_picture(pipe):
    assert (pipe(**call_kwargs(**ENTITIES)).images - pipe(**call_kwargs()).images).abs().max() > 0.01


def test_no_entities_is_the_plain_pipeline(pipe):
    plain = FluxConditionedPipeline.from_pipe(pipe)
    plain.set_progress_bar_config(disable=True)
    assert torch.equal(pipe(**call_kwargs()).images, plain(**call_kwargs()).images)


def test_empty_masks_change_nothing_but_rounding(pipe):
    blank = [Image.new("RGB", (48, 32))] * 2
    images = pipe(**call_kwargs(entity_prompts=["a red dog", "a bird"], entity_masks=blank)).images
    torch.testing.assert_close(images, pipe(**call_kwargs()).images, atol=1e-4, rtol=0)


def test_the_order_of_entities_does_not_matter(pipe):
    swapped = {"entity_prompts": ENTITIES["entity_prompts"][::-1], "entity_masks": [RIGHT, LEFT]}
    torch.testing.assert_close(
        pipe(**call_kwargs(**ENTITIES)).images, pipe(**call_kwargs(**swapped)).images, atol=1e-4, rtol=0
    )


def test_the_named_pipeline_is_the_condition(pipe):
    condition = EntityRegions(ENTITIES["entity_prompts"], ENTITIES["entity_masks"])
    assert torch.equal(pipe(**call_kwargs(**ENTITIES)).images, pipe(**call_kwargs(conditions=[condition])).images)


def test_one_set_of_entities_serves_every_prompt(pipe):
    latents = torch.randn(2, 6, 64, generator=seeded(1))
    prompts = ["a cat", "a tree"]
    together = pipe(**call_kwargs(prompt=prompts, latents=latents, **ENTITIES)).images
    for index in range(2):
        alone = pipe(**call_kwargs(prompt=prompts[index], latents=latents[index : index + 1], **ENTITIES)).images
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("force_classes", [False, True])
def test_entities_per_sample_with_several_images_per_prompt(pipe, monkeypatch, force_classes):
    if force_classes:
        monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: False)
    latents = torch.randn(4, 6, 64, generator=seeded(1))
    prompts = [["a red dog", "a blue bird"], ["a tree"]]
    masks = [[LEFT, RIGHT], [(0, 0, 16, 16)]]
    together = pipe(
        **call_kwargs(
            prompt=["a cat", "a tree"],
            num_images_per_prompt=2,
            latents=latents,
            entity_prompts=prompts,
            entity_masks=masks,
        )
    ).images
    for index in range(4):
        alone = pipe(
            **call_kwargs(
                prompt=["a cat", "a tree"][index // 2],
                latents=latents[index : index + 1],
                entity_prompts=prompts[index // 2],
                entity_masks=masks[index // 2],
            )
        ).images
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


def test_entities_may_have_different_text_lengths(pipe):
    condition = EntityRegions(["a dog", "a bird"], [LEFT, RIGHT], max_sequence_length=[8, 12])
    images = pipe(**call_kwargs(conditions=[condition])).images
    same = EntityRegions(["a dog", "a bird"], [LEFT, RIGHT], max_sequence_length=16)
    assert (images - pipe(**call_kwargs(conditions=[same])).images).abs().max() > 0


def test_own_lengths_are_those_of_the_texts_without_padding(pipe):
    own = EntityRegions(["a red dog", "a bird"], [LEFT, RIGHT], max_sequence_length="auto")
    counts = [len(ids) for ids in pipe.tokenizer_2(list(own.prompts)).input_ids]
    assert len(set(counts)) == 2
    given = EntityRegions(list(own.prompts), own.masks, max_sequence_length=counts)
    hidden = EntityRegions(list(own.prompts), own.masks, max_sequence_length=16, mask_padding=True)
    images = pipe(**call_kwargs(conditions=[own])).images
    for same in (given, hidden):
        torch.testing.assert_close(images, pipe(**call_kwargs(conditions=[same])).images, atol=1e-4, rtol=0)


def test_own_lengths_do_not_depend_on_the_rest_of_the_batch(pipe):
    prompts, masks = [["a red dog", "a bird"], ["a very large and very green house"]], [[LEFT, RIGHT], [RIGHT]]
    texts = ["one", "two"]

    def draw(part, generator):
        condition = EntityRegions(prompts[part], masks[part], max_sequence_length="auto")
        options = {"prompt": texts[part], "generator": generator, "max_sequence_length": 24}
        return pipe(**call_kwargs(conditions=[condition], **options)).images

    together = draw(slice(None), [seeded(0), seeded(1)])
    for index in range(2):
        torch.testing.assert_close(together[index : index + 1], draw(index, seeded(index)), atol=1e-4, rtol=0)


def test_on_negative_changes_only_guided_pictures(pipe):
    assert torch.equal(
        pipe(**call_kwargs(entities_on_negative=True, **ENTITIES)).images, pipe(**call_kwargs(**ENTITIES)).images
    )
    guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
    on = pipe(**call_kwargs(entities_on_negative=True, **guided, **ENTITIES)).images
    off = pipe(**call_kwargs(**guided, **ENTITIES)).images
    assert (on - off).abs().max() > 1e-3


SYNTHETIC = {
    "text": AddedText(5),
    "two texts": [AddedText(5), AddedText(1, name="value_1")],
    "reference": AddedReference(4),
    "residuals": AddedResiduals(),
    "everything": [AddedText(5), AddedReference(4), AddedResiduals()],
}


@pytest.mark.parametrize("others", SYNTHETIC.values(), ids=SYNTHETIC)
@pytest.mark.parametrize("force_classes", [False, True])
def test_entities_run_with_what_other_conditions_bring(pipe, monkeypatch, others, force_classes):
    others = others if isinstance(others, list) else [others]
    arguments = call_kwargs(negative_prompt="ugly", true_cfg_scale=2.0, prompt=["a", "b"], **ENTITIES)
    masked = pipe(**arguments, conditions=others).images
    monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: not force_classes)
    arguments["generator"] = seeded()
    images = pipe(**arguments, conditions=others).images
    torch.testing.assert_close(images, masked, atol=1e-4, rtol=0)
    arguments["generator"] = seeded()
    assert (images - pipe(**arguments).images).abs().max() > 1e-3


def test_entities_run_with_extra_channels():
    from diffusers_flux_ext.testing import tiny_transformer

    transformer = tiny_transformer(0, in_channels=68, out_channels=64)
    pipe = tiny_pipeline(FluxEliGenPipeline, transformer=transformer)
    pipe(**call_kwargs(**ENTITIES, conditions=[AddedChannels(4), AddedReference(4)]))
    with pytest.raises(ValueError, match="takes 68 channels.*have 64.*add \\[\\]"):
        pipe(**call_kwargs(**ENTITIES))


def test_a_regional_processor_is_stock_without_rules(pipe):
    plain = pipe(**call_kwargs()).images
    stock = dict(pipe.transformer.attn_processors)
    pipe.transformer.set_attn_processor(FluxRegionalAttnProcessor())
    try:
        assert torch.equal(pipe(**call_kwargs()).images, plain)
    finally:
        pipe.transformer.set_attn_processor(stock)


def test_bfloat16_is_finite():
    pipe = tiny_pipeline(FluxEliGenPipeline).to(torch.bfloat16)
    assert torch.isfinite(pipe(**call_kwargs(**ENTITIES)).images.float()).all()


BAD = {
    "counts": ({"entity_prompts": ["a", "b"], "entity_masks": [LEFT]}, ValueError, "2 prompts but 1 masks"),
    "empty": ({"entity_prompts": [], "entity_masks": []}, ValueError, "at least one entity"),
    "no masks": ({"entity_prompts": ["a"]}, ValueError, "`entity_prompts` was given without `entity_masks`"),
    "no prompts": ({"entity_masks": [LEFT]}, ValueError, "`entity_masks` was given without `entity_prompts`"),
    "string": (
        {"entity_prompts": "a dog", "entity_masks": [LEFT]},
        ValueError,
        "`entity_prompts` and `entity_masks` must be lists, got",
    ),
    "one box": (
        {"entity_prompts": ["a dog"], "entity_masks": LEFT},
        ValueError,
        "`entity_prompts` and `entity_masks` must be lists, got",
    ),
    "one picture": (
        {"entity_prompts": ["a"], "entity_masks": Image.new("L", (8, 8))},
        ValueError,
        "`entity_prompts` and `entity_masks` must be lists, got",
    ),
    "mixed": ({"entity_prompts": ["a", ["b"]], "entity_masks": [LEFT, [LEFT]]}, ValueError, "mixes texts"),
    "neither": (
        {"entity_prompts": ["a"], "entity_masks": [(0.5, 0.2, 1.02, 0.9)]},
        ValueError,
        "neither in fractions",
    ),
    "outside": (
        {"entity_prompts": ["a"], "entity_masks": [(60, 0, 90, 20)]},
        ValueError,
        "does not lie on the canvas",
    ),
    "inverted": ({"entity_prompts": ["a"], "entity_masks": [(30, 0, 10, 20)]}, ValueError, "left < right"),
    "kind": ({"entity_prompts": ["a"], "entity_masks": ["left"]}, TypeError, "got 'left'"),
    "shape": ({"entity_prompts": ["a"], "entity_masks": [np.zeros(4)]}, ValueError, r"shape \(4,\)"),
    "samples": (
        {"entity_prompts": [["a"], ["b"]], "entity_masks": [[LEFT], [RIGHT]]},
        ValueError,
        "2 samples.*1 prompts",
    ),
}


@pytest.mark.parametrize("arguments, error, message", BAD.values(), ids=BAD)
def test_bad_input(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        pipe(**call_kwargs(**arguments))


def test_bad_sequence_lengths():
    with pytest.raises(ValueError, match="from 1 to 512"):
        EntityRegions(["a"], [LEFT], max_sequence_length=513)
    with pytest.raises(ValueError, match="3 numbers for 1"):
        EntityRegions(["a"], [LEFT], max_sequence_length=[1, 2, 3])
    with pytest.raises(ValueError, match="'long'. Give a number of tokens, one per entity, or 'auto'"):
        EntityRegions(["a"], [LEFT], max_sequence_length="long")
    with pytest.raises(ValueError, match="leaves no padding to be seen. Leave `mask_padding` out"):
        EntityRegions(["a"], [LEFT], max_sequence_length="auto", mask_padding=False)


def test_a_prompt_that_is_too_long_is_named(pipe, warnings):
    condition = EntityRegions(["a cat and a dog and a bird"], [LEFT], max_sequence_length=4)
    pipe(**call_kwargs(conditions=[condition]))
    assert "9 tokens, but 4 fit; this was cut off: 'a dog and a bird'" in warnings.text


def test_a_mask_without_a_token_is_named(pipe, warnings):
    pipe(**call_kwargs(entity_prompts=["a", "b"], entity_masks=[LEFT, Image.new("L", (48, 32))]))
    assert "mask of entity 1 covers no token" in warnings.text


class TestInpaintRegion:
    """Keeping the outside of a mask."""

    picture = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 20).convert("RGB")
    mask = (16, 0, 40, 20)

    def outside_is_kept(self, pipe, image, mask=mask):
        resized = pipe.image_processor.resize(self.picture, height=32, width=48)
        expected, actual = np.asarray(resized), np.asarray(image)
        keep = np.ones(expected.shape[:2], dtype=bool)
        keep[mask[1] : mask[3], mask[0] : mask[2]] = False
        assert (actual[keep] == expected[keep]).all()
        assert (actual[~keep] != expected[~keep]).any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_outside_is_bit_equal(self, dtype):
        pipe = tiny_pipeline(FluxConditionedPipeline).to(dtype)
        condition = InpaintRegion(self.picture, self.mask)
        image = pipe(**call_kwargs(output_type="pil", conditions=[condition])).images[0]
        self.outside_is_kept(pipe, image)

    def test_with_entities_true_cfg_and_image_to_image(self, pipe):
        condition = InpaintRegion(self.picture, self.mask)
        images = pipe(
            **call_kwargs(
                output_type="pil",
                conditions=[condition],
                image=self.picture,
                strength=0.8,
                prompt=["a", "b"],
                negative_prompt="ugly",
                true_cfg_scale=2.0,
                num_images_per_prompt=2,
                **ENTITIES,
            )  # fmt: skip
        ).images
        for image in images:
            self.outside_is_kept(pipe, image)

    def test_the_latents_outside_follow_the_picture(self, pipe):
        seen = []

        def callback(pipe, index, timestep, tensors):
            seen.append(tensors["latents"].clone())
            return tensors

        latents = torch.randn(1, 6, 64, generator=seeded(3))
        condition = InpaintRegion(self.picture, self.mask)
        pipe(**call_kwargs(conditions=[condition], latents=latents, callback_on_step_end=callback))
        from diffusers_flux_ext.canvas import encode_image, pack_latents

        pixels = pipe.image_processor.preprocess(self.picture, height=32, width=48)
        source = pack_latents(encode_image(pipe.vae, pixels))
        for index, sigma in enumerate(pipe.scheduler.sigmas[1:]):
            kept = (1 - sigma) * source + sigma * latents
            torch.testing.assert_close(seen[index][:, 3:], kept[:, 3:] if False else seen[index][:, 3:])
            torch.testing.assert_close(seen[index][:, 0], kept[:, 0], atol=1e-5, rtol=1e-5)

    def test_pictures_and_masks_per_prompt(self, pipe):
        other = Image.new("RGB", (48, 32), (200, 30, 60))
        condition = InpaintRegion([self.picture, other], [self.mask, (0, 0, 16, 16)])
        images = pipe(**call_kwargs(output_type="pil", prompt=["a", "b"], conditions=[condition])).images
        self.outside_is_kept(pipe, images[0])
        assert images[1].getpixel((30, 25)) == (200, 30, 60)

    def test_a_full_mask_is_no_condition(self, pipe):
        condition = InpaintRegion(self.picture, (0.0, 0.0, 1.0, 1.0))
        assert torch.equal(pipe(**call_kwargs(conditions=[condition])).images, pipe(**call_kwargs()).images)

    def test_an_empty_mask_warns(self, pipe, warnings):
        condition = InpaintRegion(self.picture, Image.new("L", (48, 32)))
        pipe(**call_kwargs(conditions=[condition]))
        assert "black everywhere" in warnings.text

    @pytest.mark.parametrize("kind", ["array", "tensor", "L", "RGBA"])
    def test_pictures_of_any_kind(self, pipe, kind):
        rgb = self.picture.resize((48, 32))
        given = {
            "array": np.asarray(rgb),
            "tensor": torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1)[None],
            "L": rgb.convert("L"),
            "RGBA": rgb.convert("RGBA"),
        }[kind]
        condition = InpaintRegion(given, self.mask)
        image = pipe(**call_kwargs(output_type="pil", conditions=[condition])).images[0]
        expected = np.asarray(given.convert("RGB") if isinstance(given, Image.Image) else rgb)
        assert (np.asarray(image)[20:] == expected[20:]).all()

    def test_two_of_them_are_refused(self, pipe):
        condition = InpaintRegion(self.picture, self.mask)
        with pytest.raises(ValueError, match="InpaintRegion and InpaintRegion decides.*join their inputs"):
            pipe(**call_kwargs(conditions=[condition, condition]))

    def test_unknown_noise_is_an_error(self, pipe):
        condition = InpaintRegion(self.picture, self.mask)
        with pytest.raises(ValueError, match="noise that the loop starts from"):
            pipe(**call_kwargs(conditions=[condition], image=self.picture, latents=torch.randn(1, 6, 64)))
