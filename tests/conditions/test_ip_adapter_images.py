"""IPAdapterImages: laws, inputs, batches, masks, windows and other methods."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.hooks.group_offloading import ModuleGroup

from diffusers_flux_ext import (
    Contribution,
    DenoisingStep,
    EntityRegions,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    FluxExtTransformer2DModel,
    FluxRegionalAttnProcessor,
    ImagePrompt,
    IPAdapterImages,
    PromptEmbeds,
    predict_velocity,
)
from diffusers_flux_ext.conditions import windows
from diffusers_flux_ext.conditions.base import EncodedConditions
from diffusers_flux_ext.conditions.image_embeds import embed_images, image_processor_for
from diffusers_flux_ext.models.attention_processor_flux import regional_attention
from tests.fixtures.ip_adapter import (
    XLABS,
    image_embeds,
    nested_state_dict,
    picture,
    tiny_clip_vision,
    tiny_ip_adapter,
    tiny_siglip,
)
from tests.fixtures.synthetic import AddedReference, AddedResiduals, AddedText
from tests.fixtures.tiny import call_kwargs, quiet, seeded, tiny_pipeline, tiny_transformer


LEFT, RIGHT = (0.0, 0.0, 0.34, 1.0), (0.34, 0.0, 1.0, 1.0)
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
CLOSE = {"atol": 1e-5, "rtol": 0}
KINDS = {"instantx": {}, "xlabs": XLABS}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


@pytest.fixture(scope="module", params=KINDS)
def adapter(request):
    return tiny_ip_adapter(1, **KINDS[request.param])


def run(pipe, *conditions, **arguments):
    return pipe(**call_kwargs(conditions=list(conditions), **arguments)).images


def differ(one, other, least=1e-3):
    return bool((one - other).abs().max() > least)


class TestLaws:
    @pytest.mark.parametrize("scale", [0.0, "a list"])
    @pytest.mark.parametrize("guided", [{}, GUIDED], ids=["plain", "guided"])
    def test_scale_zero_is_no_condition(self, pipe, adapter, scale, guided):
        scale = [0.0] * adapter.config.num_blocks if scale == "a list" else scale
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(), scale=scale)
        assert torch.equal(run(pipe, condition, **guided), run(pipe, **guided))

    def test_an_empty_window_is_no_condition(self, pipe, adapter):
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(), start=0.4, end=0.6)
        assert torch.equal(run(pipe, condition), run(pipe))

    def test_a_mask_without_tokens_changes_rounding_at_most(self, pipe, adapter):
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(), mask=np.zeros((8, 8)))
        torch.testing.assert_close(run(pipe, condition), run(pipe), **CLOSE)

    def test_the_model_is_as_before_afterwards(self, pipe, adapter):
        before, processors = run(pipe), dict(pipe.transformer.attn_processors)
        weights = {key: tensor.clone() for key, tensor in pipe.transformer.state_dict().items()}
        assert differ(run(pipe, IPAdapterImages(adapter, image_embeds=image_embeds())), before)
        assert all(pipe.transformer.attn_processors[name] is part for name, part in processors.items())
        assert all(torch.equal(weights[key], tensor) for key, tensor in pipe.transformer.state_dict().items())
        assert torch.equal(run(pipe), before)

    def test_a_scale_acts_in_its_block_alone(self, pipe, adapter):
        depth, embeds = adapter.config.num_blocks, image_embeds()
        one_block = [1.0] + [0.0] * (depth - 1)
        first = run(pipe, IPAdapterImages(adapter, image_embeds=embeds, scale=one_block))
        tiny = run(pipe, IPAdapterImages(adapter, image_embeds=embeds, scale=[1.0] + [1e-9] * (depth - 1)))
        torch.testing.assert_close(first, tiny, **CLOSE)
        last = run(pipe, IPAdapterImages(adapter, image_embeds=embeds, scale=one_block[::-1]))
        assert differ(first, last)

    def test_scales_are_linear_in_each_block(self, pipe):
        adapter, embeds = tiny_ip_adapter(1), image_embeds()[None]
        step = some_step(pipe, "cond")
        prompts = [
            IPAdapterImages(adapter, image_embeds=embeds, scale=scale)
            .contribute({"image_embeds": embeds}, step)
            .attention_kwargs["image_prompts"][0]
            for scale in (1.0, [0.0, 1.0, 2.0, -1.0, 0.5])
        ]
        factors = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])[:, None, None, None, None]
        torch.testing.assert_close(prompts[1].values, prompts[0].values * factors)
        assert torch.equal(prompts[1].keys, prompts[0].keys)
        assert prompts[1].used == (False, True, True, True, True)


def some_step(pipe, branch, index=0, num_steps=1):
    prompt = PromptEmbeds(torch.zeros(1, 3, 40), torch.zeros(1, 24), torch.zeros(3, 3))
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(3.0))
    latents = torch.randn(1, 6, 64, generator=seeded(2))
    return DenoisingStep(index, num_steps, branch, torch.tensor([0.5]), latents, ids, prompt, torch.tensor([3.5]))


class TestSeveral:
    def test_two_adapters_are_summed_in_either_order(self, pipe, adapter):
        other = tiny_ip_adapter(9)
        parts = [
            IPAdapterImages(adapter, image_embeds=image_embeds(1)),
            IPAdapterImages(other, image_embeds=image_embeds(2)),
        ]
        both = run(pipe, *parts)
        torch.testing.assert_close(both, run(pipe, *parts[::-1]), **CLOSE)
        assert all(differ(both, run(pipe, part)) for part in parts)

    def test_the_same_condition_twice_is_twice_the_scale(self, pipe, adapter):
        half = IPAdapterImages(adapter, image_embeds=image_embeds(1), scale=0.5)
        full = IPAdapterImages(adapter, image_embeds=image_embeds(1), scale=1.0)
        torch.testing.assert_close(run(pipe, half, half), run(pipe, full), **CLOSE)

    def test_the_order_of_pictures_does_not_matter_and_each_counts(self, pipe, adapter):
        embeds = image_embeds(1, 3, 12)
        together = run(pipe, IPAdapterImages(adapter, image_embeds=embeds))
        torch.testing.assert_close(together, run(pipe, IPAdapterImages(adapter, image_embeds=embeds.flip(0))), **CLOSE)
        assert differ(together, run(pipe, IPAdapterImages(adapter, image_embeds=embeds[:2])))


class TestBatches:
    latents = torch.randn(4, 6, 64, generator=seeded(1))
    prompts = ("a cat", "a tree")

    def alone(self, pipe, index, condition, **arguments):
        latents = self.latents[index : index + 1]
        return run(pipe, condition, prompt=self.prompts[index // 2], latents=latents, **arguments)

    def together(self, pipe, condition, **arguments):
        inputs = {"prompt": list(self.prompts), "num_images_per_prompt": 2, "latents": self.latents}
        return run(pipe, condition, **inputs, **arguments)

    @pytest.mark.parametrize("guided", [{}, GUIDED], ids=["plain", "guided"])
    def test_one_set_of_pictures_serves_all(self, pipe, adapter, guided):
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(3, 2, 12))
        together = self.together(pipe, condition, **guided)
        for index in range(4):
            alone = self.alone(pipe, index, condition, **guided)
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)

    def test_pictures_and_masks_of_each_prompt(self, pipe, adapter):
        embeds = image_embeds(3, 2, 1, 12)
        together = self.together(pipe, IPAdapterImages(adapter, image_embeds=embeds, mask=[LEFT, RIGHT]))
        for index in range(4):
            one = IPAdapterImages(adapter, image_embeds=embeds[index // 2], mask=(LEFT, RIGHT)[index // 2])
            torch.testing.assert_close(together[index : index + 1], self.alone(pipe, index, one), atol=1e-4, rtol=0)

    def test_nested_pictures(self, pipe):
        adapter, encoder = tiny_ip_adapter(1), tiny_siglip()
        pictures = [[picture(0)], [picture(1)]]
        nested = IPAdapterImages(adapter, pictures, image_encoder=encoder)
        together = self.together(pipe, nested)
        for index in (0, 2):
            one = IPAdapterImages(adapter, pictures[index // 2], image_encoder=encoder)
            torch.testing.assert_close(together[index : index + 1], self.alone(pipe, index, one), atol=1e-4, rtol=0)


class TestMask:
    @pytest.mark.parametrize("force_classes", [False, True])
    def test_only_tokens_inside_are_touched_in_the_first_block(self, adapter, force_classes, monkeypatch):
        """A model of one double block shows what its image tokens got."""
        if force_classes:
            monkeypatch.setattr("diffusers_flux_ext.attention_plan._masking_is_cheaper", lambda *args: False)
        transformer = tiny_transformer(0, num_layers=1, num_single_layers=0)
        adapter = tiny_ip_adapter(1, **{**dict(adapter.config), "num_blocks": 1})
        pipe = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
        step = some_step(pipe, "cond")
        inside = torch.tensor([[False, True, False, True, True, False]])
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(), mask=LEFT)
        part = condition.contribute({"image_embeds": image_embeds()[None], "mask": inside}, step)
        regions = EntityRegions(["a"], [LEFT])
        entity = {"masks": inside[:, None].roll(1, -1), "entity_0": torch.randn(1, 3, 40, generator=seeded(3))}
        others = [regions.contribute(entity, step), AddedReference(2).contribute({}, step)]
        with regional_attention(transformer):
            plain = predict_velocity(transformer, step, others)
            prompted = predict_velocity(transformer, step, [*others, part])
        changed = (plain - prompted).abs().amax(dim=2) > 1e-4
        assert torch.equal(changed, inside)

    def test_text_does_not_carry_a_masked_prompt_to_the_outside(self):
        """In a model of one single block no attention follows, so that only the mask decides."""
        transformer = tiny_transformer(0, num_layers=0, num_single_layers=1)
        adapter = tiny_ip_adapter(1, num_blocks=1)
        step = some_step(None, "cond")
        inside = torch.tensor([[True, False, False, True, False, False]])
        condition = IPAdapterImages(adapter, image_embeds=image_embeds())
        part = condition.contribute({"image_embeds": image_embeds()[None], "mask": inside}, step)
        with regional_attention(transformer):
            plain = predict_velocity(transformer, step, [])
            prompted = predict_velocity(transformer, step, [part])
        assert torch.equal((plain - prompted).abs().amax(dim=2) > 1e-4, inside)

    def test_a_full_mask_on_double_blocks_is_no_mask(self, pipe):
        adapter = tiny_ip_adapter(1, **XLABS)
        full = IPAdapterImages(adapter, image_embeds=image_embeds(), mask=(0.0, 0.0, 1.0, 1.0))
        plain = IPAdapterImages(adapter, image_embeds=image_embeds())
        torch.testing.assert_close(run(pipe, full), run(pipe, plain), **CLOSE)

    def test_two_adapters_with_regions_of_their_own(self, pipe, adapter):
        parts = [
            IPAdapterImages(adapter, image_embeds=image_embeds(1), mask=LEFT),
            IPAdapterImages(adapter, image_embeds=image_embeds(2), mask=RIGHT),
        ]
        both = run(pipe, *parts)
        swapped = run(pipe, IPAdapterImages(adapter, image_embeds=image_embeds(1), mask=RIGHT), parts[1])
        assert differ(both, swapped)


class TestWindow:
    @pytest.mark.parametrize(
        "start, end, active",
        [(0.0, 1.0, 0b1111), (0.0, 0.5, 0b0011), (0.5, 1.0, 0b1100), (0.25, 0.75, 0b0110), (0.1, 1.0, 0b1110)],
    )
    def test_steps_inside(self, pipe, start, end, active):
        condition = IPAdapterImages(tiny_ip_adapter(1), image_embeds=image_embeds(), start=start, end=end)
        encoded = {"image_embeds": image_embeds()[None]}
        found = [
            bool(condition.contribute(encoded, some_step(pipe, "cond", index, 4)).attention_kwargs)
            for index in range(4)
        ]
        assert found == [bool(active >> index & 1) for index in range(4)]

    def test_two_windows_that_meet_are_the_whole(self, pipe, adapter):
        embeds = image_embeds()
        parts = [IPAdapterImages(adapter, image_embeds=embeds, start=a, end=b) for a, b in ((0, 0.5), (0.5, 1))]
        whole = IPAdapterImages(adapter, image_embeds=embeds)
        steps = {"num_inference_steps": 4}
        torch.testing.assert_close(run(pipe, *parts, **steps), run(pipe, whole, **steps), **CLOSE)
        assert differ(run(pipe, parts[0], **steps), run(pipe, parts[1], **steps))

    def test_keys_and_values_are_made_once_per_branch(self, pipe, monkeypatch):
        adapter, calls = tiny_ip_adapter(1), []
        adapter.register_forward_hook(lambda *args: calls.append(1))
        run(pipe, IPAdapterImages(adapter, image_embeds=image_embeds(), end=0.8), num_inference_steps=6, **GUIDED)
        assert len(calls) == 2


class TestNegative:
    def test_zeros_or_nothing(self, pipe, adapter):
        embeds = image_embeds()
        zeros = IPAdapterImages(adapter, image_embeds=embeds)
        nothing = IPAdapterImages(adapter, image_embeds=embeds, negative=None)
        assert torch.equal(run(pipe, zeros), run(pipe, nothing))
        guided = run(pipe, nothing, **GUIDED)
        assert differ(run(pipe, zeros, **GUIDED), guided)
        off = IPAdapterImages(adapter, image_embeds=embeds, negative_scale=0.0)
        torch.testing.assert_close(run(pipe, off, **GUIDED), guided, **CLOSE)


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


class TestOtherMethods:
    others = (EntityRegions(["a red dog"], [LEFT]), AddedText(3), AddedReference(4), AddedResiduals())

    @pytest.mark.parametrize("force_classes", [False, True])
    def test_with_all_of_them_in_batches(self, pipe, adapter, force_classes, monkeypatch):
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(), mask=LEFT)
        inputs = {"prompt": ["a", "b"], "num_images_per_prompt": 2, **GUIDED}
        masked = run(pipe, condition, *self.others, **inputs)
        monkeypatch.setattr("diffusers_flux_ext.attention_plan._masking_is_cheaper", lambda *args: not force_classes)
        images = run(pipe, *self.others, condition, **inputs)
        torch.testing.assert_close(images, masked, atol=1e-4, rtol=0)
        assert differ(images, run(pipe, *self.others, **inputs))

    def test_the_named_pipeline_and_sharing(self, adapter):
        stock = tiny_pipeline(FluxPipeline)
        eligen = quiet(FluxEliGenPipeline.from_pipe(stock))
        condition = IPAdapterImages(adapter, image_embeds=image_embeds())
        entities = {"entity_prompts": ["a red dog"], "entity_masks": [LEFT]}
        composed = eligen(**call_kwargs(**entities, conditions=[condition])).images
        listed = run(quiet(FluxConditionedPipeline.from_pipe(stock)), self.others[0], condition)
        assert torch.equal(composed, listed)
        assert torch.equal(stock(**call_kwargs()).images, run(eligen))

    def test_diffusers_own_adapter_is_refused_by_name(self, pipe):
        adapter = tiny_ip_adapter(1, **XLABS)
        other = tiny_pipeline(FluxConditionedPipeline)
        load_into_diffusers(other, adapter)
        embeds = {"ip_adapter_image_embeds": [image_embeds()[None]]}
        with pytest.raises(ValueError, match="FluxIPAdapterAttnProcessor.*unload_ip_adapter"):
            run(other, IPAdapterImages(adapter, image_embeds=image_embeds(), start=0.5), **embeds)
        other.unload_ip_adapter()
        run(other, IPAdapterImages(adapter, image_embeds=image_embeds()))


def load_into_diffusers(pipe, *adapters):
    pipe.load_ip_adapter(
        [nested_state_dict(adapter) for adapter in adapters],
        weight_name=[""] * len(adapters),
        image_encoder_pretrained_model_name_or_path=None,
    )


class TestDiffusers:
    """diffusers runs XLabs' adapters on the double blocks, on image tokens only, as this package does."""

    @pytest.mark.parametrize("scale", [1.0, [0.3, 1.4]])
    @pytest.mark.parametrize("pictures", [1, 2])
    def test_the_same_pictures_give_the_same_output(self, pipe, scale, pictures):
        adapter, embeds = tiny_ip_adapter(1, **XLABS), image_embeds(2, pictures, 12)
        stock = tiny_pipeline(FluxPipeline)
        load_into_diffusers(stock, adapter)
        stock.set_ip_adapter_scale(scale)
        zeros = torch.zeros_like(embeds)
        expected = stock(
            **call_kwargs(
                ip_adapter_image_embeds=[embeds[None]], negative_ip_adapter_image_embeds=[zeros[None]], **GUIDED
            )
        ).images
        condition = IPAdapterImages(adapter, image_embeds=embeds, scale=scale, negative_scale=scale)
        torch.testing.assert_close(run(pipe, condition, **GUIDED), expected, **CLOSE)

    def test_two_adapters(self, pipe):
        adapters = [tiny_ip_adapter(seed, **XLABS) for seed in (1, 2)]
        stock = tiny_pipeline(FluxPipeline)
        load_into_diffusers(stock, *adapters)
        stock.set_ip_adapter_scale([0.5, [1.0, 0.2]])
        embeds = [image_embeds(seed) for seed in (3, 4)]
        given = [part[None] for part in embeds]
        expected = stock(**call_kwargs(ip_adapter_image_embeds=given, negative_ip_adapter_image_embeds=given)).images
        conditions = [
            IPAdapterImages(adapters[0], image_embeds=embeds[0], scale=0.5),
            IPAdapterImages(adapters[1], image_embeds=embeds[1], scale=[1.0, 0.2]),
        ]
        torch.testing.assert_close(run(pipe, *conditions), expected, **CLOSE)


class TestExecution:
    def test_bfloat16_is_finite(self, adapter):
        pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
        half = tiny_ip_adapter(1, **dict(adapter.config)).to(torch.bfloat16)
        images = run(pipe, IPAdapterImages(half, image_embeds=image_embeds(), mask=LEFT), **GUIDED)
        assert torch.isfinite(images.float()).all()
        assert differ(images.float(), run(pipe, **GUIDED).float())

    @pytest.mark.parametrize("level", [{"offload_type": "leaf_level"}, {"num_blocks_per_group": 1}])
    def test_group_offloading_of_both_models(self, pipe, adapter, level, monkeypatch):
        moved, onload = [], ModuleGroup.onload_
        monkeypatch.setattr(ModuleGroup, "onload_", lambda group: moved.append(group) or onload(group))
        settings = {"onload_device": torch.device("cpu"), "offload_type": "block_level", **level}
        expected = run(pipe, IPAdapterImages(adapter, picture(), image_encoder=tiny_siglip()), **GUIDED)
        other, copy = tiny_pipeline(FluxConditionedPipeline), tiny_ip_adapter(1, **dict(adapter.config))
        other.transformer.enable_group_offload(**settings)
        copy.enable_group_offload(**settings)
        condition = IPAdapterImages(copy, picture(), image_encoder=tiny_siglip())
        assert torch.equal(run(other, condition, **GUIDED), expected)
        assert len(set(map(id, moved))) >= 5 + adapter.config.num_blocks

    @pytest.mark.parametrize("own_class", [False, True])
    def test_compiled_blocks_are_compiled_once(self, own_class):
        """With more blocks than torch compiles one code for, so that the number of a block must not matter."""
        torch._dynamo.reset()
        depth = {"num_layers": 10, "num_single_layers": 10}
        eager = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0, **depth))
        adapter = tiny_ip_adapter(1, num_blocks=20)
        conditions = [IPAdapterImages(adapter, image_embeds=image_embeds(), mask=LEFT)]
        expected = run(eager, *conditions)
        transformer = tiny_transformer(0, **depth)
        if own_class:
            weights, axes = transformer.state_dict(), transformer.config.axes_dims_rope
            transformer = FluxExtTransformer2DModel.from_state_dict(weights, axes_dims_rope=axes)
        compiled = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
        count: list[int] = []
        backend = lambda graph, inputs: count.append(1) or graph.forward  # noqa: E731
        compiled.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
        torch.testing.assert_close(run(compiled, *conditions), expected, **CLOSE)
        first = len(count)
        torch.testing.assert_close(run(compiled, *conditions), expected, **CLOSE)
        assert len(count) == first
        torch._dynamo.reset()

    def test_fused_projections(self, adapter, pipe):
        fused = tiny_pipeline(FluxConditionedPipeline)
        fused.transformer.fuse_qkv_projections()
        condition = IPAdapterImages(adapter, image_embeds=image_embeds())
        torch.testing.assert_close(run(fused, condition), run(pipe, condition), **CLOSE)

    def test_gradients_reach_the_adapter(self, pipe):
        adapter = tiny_ip_adapter(1).requires_grad_(True)
        condition, embeds = IPAdapterImages(adapter, image_embeds=image_embeds()), image_embeds()[None]
        step = some_step(pipe, "cond")
        with torch.enable_grad(), regional_attention(pipe.transformer):
            part = condition.contribute({"image_embeds": embeds}, step)
            predict_velocity(pipe.transformer, step, [part]).square().mean().backward()
        assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in adapter.parameters())

    def test_one_processor_for_all_layers_is_stood_in_for(self, pipe, adapter):
        condition = IPAdapterImages(adapter, image_embeds=image_embeds())
        expected = run(pipe, condition)
        shared = FluxRegionalAttnProcessor()
        other = tiny_pipeline(FluxConditionedPipeline)
        other.transformer.set_attn_processor(shared)
        assert torch.equal(run(other, condition), expected)
        assert all(processor is shared for processor in other.transformer.attn_processors.values())

    def test_outside_of_the_context_it_is_an_error(self, pipe):
        condition = IPAdapterImages(tiny_ip_adapter(1), image_embeds=image_embeds())
        step = some_step(pipe, "cond")
        part = condition.contribute({"image_embeds": image_embeds()[None]}, step)
        with pytest.raises(ValueError, match=r"has \['FluxAttnProcessor'\].*regional_attention"):
            predict_velocity(pipe.transformer, step, [part])
        shared = tiny_transformer(0)
        shared.set_attn_processor(FluxRegionalAttnProcessor())
        with pytest.raises(ValueError, match="made without `block`"):
            predict_velocity(shared, step, [part])


BAD = {
    "nothing": ({}, ValueError, "either `images` or `image_embeds`"),
    "both": ({"images": picture(), "image_embeds": image_embeds()}, ValueError, "give one of the two"),
    "window": ({"image_embeds": image_embeds(), "start": 0.7, "end": 0.2}, ValueError, "start=0.7 and end=0.2"),
    "scales": ({"image_embeds": image_embeds(), "scale": [1.0, 2.0]}, ValueError, "2 numbers, but its module has 5"),
    "negative": ({"image_embeds": image_embeds(), "negative": "black"}, ValueError, "'black'; expected 'zeros'"),
    "embeds": ({"image_embeds": torch.zeros(12)}, ValueError, r"shape \(12,\); expected \(batch_size"),
    "width": ({"image_embeds": torch.zeros(1, 7)}, ValueError, r"expected \(batch_size, num_images, 12\)"),
    "encoder": ({"images": picture()}, ValueError, "pictures but no `image_encoder`"),
    "empty": ({"images": [], "image_encoder": tiny_siglip()}, ValueError, r"holds \[0\] pictures"),
    "counts": (
        {"images": [[picture()], [picture()] * 2], "image_encoder": tiny_siglip()},
        ValueError,
        r"holds \[1, 2\] pictures",
    ),
    "mixed": ({"images": [picture(), [picture()]], "image_encoder": tiny_siglip()}, ValueError, "mixes lists"),
    "kind": ({"images": "cat.png", "image_encoder": tiny_siglip()}, TypeError, "a str came"),
    "shape": ({"images": np.zeros((4, 4)), "image_encoder": tiny_siglip()}, ValueError, r"shape \(4, 4\)"),
    "prompts": ({"image_embeds": torch.zeros(3, 1, 12)}, ValueError, "3 samples.*1 prompts"),
    "masks": ({"image_embeds": image_embeds(), "mask": [LEFT, RIGHT]}, ValueError, "2 samples.*1 prompts"),
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
    encoded = EncodedConditions.__new__(EncodedConditions)
    encoded.conditions, encoded.encoded, encoded._once = [condition], [{"image_embeds": image_embeds()[None]}], {}
    encoded._prepared = {}
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
        ({"scale": "0.5"}, TypeError, "'0.5' came"),
        ({"scale": float("nan")}, ValueError, "has to be finite"),
        ({"negative_scale": 0.5, "negative": None}, ValueError, "`negative_scale=0.5` has no effect"),
    ],
)
def test_scales_that_mean_nothing(adapter, arguments, error, message):
    with pytest.raises(error, match=message):
        IPAdapterImages(adapter, image_embeds=image_embeds(), **arguments)


def test_a_window_without_a_step_warns_once(pipe, adapter, monkeypatch):
    seen = []
    monkeypatch.setattr(windows.logger, "warning", seen.append)
    run(pipe, IPAdapterImages(adapter, image_embeds=image_embeds(), start=0.4, end=0.6), **GUIDED)
    assert ["IPAdapterImages acts from 0.4 to 0.6" in text for text in seen] == [True]
