"""IPAdapterImages: laws, several at once, batches, masks, windows and the negative side."""

import numpy as np
import pytest
import torch

from benchmarks.support.tiny.ip_adapter import (
    XLABS,
    differ,
    image_embeds,
    picture,
    run,
    some_step,
    tiny_ip_adapter,
    tiny_siglip,
)
from benchmarks.support.tiny.synthetic import AddedReference
from diffusers_flux_ext import (
    EntityRegions,
    FluxConditionedPipeline,
    IPAdapterImages,
    predict_velocity,
)
from diffusers_flux_ext.attention.processor import regional_attention
from diffusers_flux_ext.testing import seeded, tiny_pipeline, tiny_transformer


LEFT, RIGHT = (0.0, 0.0, 0.34, 1.0), (0.34, 0.0, 1.0, 1.0)
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
CLOSE = {"atol": 1e-5, "rtol": 0}


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
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(), region=np.zeros((8, 8)))
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
        together = self.together(pipe, IPAdapterImages(adapter, image_embeds=embeds, region=[LEFT, RIGHT]))
        for index in range(4):
            one = IPAdapterImages(adapter, image_embeds=embeds[index // 2], region=(LEFT, RIGHT)[index // 2])
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
            monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: False)
        transformer = tiny_transformer(0, num_layers=1, num_single_layers=0)
        adapter = tiny_ip_adapter(1, **{**dict(adapter.config), "num_blocks": 1})
        pipe = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
        step = some_step(pipe, "cond")
        inside = torch.tensor([[False, True, False, True, True, False]])
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(), region=LEFT)
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
        full = IPAdapterImages(adapter, image_embeds=image_embeds(), region=(0.0, 0.0, 1.0, 1.0))
        plain = IPAdapterImages(adapter, image_embeds=image_embeds())
        torch.testing.assert_close(run(pipe, full), run(pipe, plain), **CLOSE)

    def test_two_adapters_with_regions_of_their_own(self, pipe, adapter):
        parts = [
            IPAdapterImages(adapter, image_embeds=image_embeds(1), region=LEFT),
            IPAdapterImages(adapter, image_embeds=image_embeds(2), region=RIGHT),
        ]
        both = run(pipe, *parts)
        swapped = run(pipe, IPAdapterImages(adapter, image_embeds=image_embeds(1), region=RIGHT), parts[1])
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
