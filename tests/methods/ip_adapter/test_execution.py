"""IPAdapterImages: beside other methods, equal to diffusers, compiled, offloaded and trained."""

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks.group_offloading import ModuleGroup

from benchmarks.support.tiny.ip_adapter import (
    XLABS,
    differ,
    image_embeds,
    nested_state_dict,
    picture,
    run,
    some_step,
    tiny_ip_adapter,
    tiny_siglip,
)
from benchmarks.support.tiny.synthetic import AddedReference, AddedResiduals, AddedText
from diffusers_flux_ext import (
    EntityRegions,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    FluxExtTransformer2DModel,
    FluxRegionalAttnProcessor,
    IPAdapterImages,
    predict_velocity,
)
from diffusers_flux_ext.attention.processor import regional_attention
from diffusers_flux_ext.testing import call_kwargs, quiet, tiny_pipeline, tiny_transformer


LEFT, RIGHT = (0.0, 0.0, 0.34, 1.0), (0.34, 0.0, 1.0, 1.0)
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
CLOSE = {"atol": 1e-5, "rtol": 0}


class TestOtherMethods:
    others = (EntityRegions(["a red dog"], [LEFT]), AddedText(3), AddedReference(4), AddedResiduals())

    @pytest.mark.parametrize("force_classes", [False, True])
    def test_with_all_of_them_in_batches(self, pipe, adapter, force_classes, monkeypatch):
        condition = IPAdapterImages(adapter, image_embeds=image_embeds(), region=LEFT)
        inputs = {"prompt": ["a", "b"], "num_images_per_prompt": 2, **GUIDED}
        masked = run(pipe, condition, *self.others, **inputs)
        monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: not force_classes)
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
        images = run(pipe, IPAdapterImages(half, image_embeds=image_embeds(), region=LEFT), **GUIDED)
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

    @pytest.mark.slow
    @pytest.mark.parametrize("own_class", [False, True])
    def test_compiled_blocks_are_compiled_once(self, own_class):
        """With more blocks than torch compiles one code for, so that the number of a block must not matter."""
        torch._dynamo.reset()
        depth = {"num_layers": 10, "num_single_layers": 10}
        eager = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0, **depth))
        adapter = tiny_ip_adapter(1, num_blocks=20)
        conditions = [IPAdapterImages(adapter, image_embeds=image_embeds(), region=LEFT)]
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
