"""Caches, LoRA, IP-Adapter, textual inversion and execution, as in every diffusers pipeline."""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FluxPipeline,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.group_offloading import ModuleGroup
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import nn
from torch.testing import assert_close

from diffusers_flux_ext.testing import call_kwargs, different, seeded, tiny_components, tiny_pipeline
from tests.fixtures.contract import EXACT, NUM_BLOCKS, Case, count_calls, output_of


def timestep_of(pipe: Any) -> Callable[[], float]:
    return lambda: float(pipe.current_timestep)


CACHES: dict[str, Callable[[Any], Any]] = {
    "first block": lambda _: FirstBlockCacheConfig(threshold=10.0),
    "taylor": lambda _: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, max_order=1),
    "mag": lambda _: MagCacheConfig(num_inference_steps=6, mag_ratios=torch.ones(6), retention_ratio=0.2),
    "pyramid": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1001),
        current_timestep_callback=timestep_of(pipe),
    ),
    "faster": lambda pipe: FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 999),
        attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=timestep_of(pipe),
        is_guidance_distilled=True,
    ),
}


class TestCaches:
    @pytest.mark.parametrize("config", CACHES.values(), ids=CACHES)
    def test_a_cache_skips_attention_and_leaves_no_trace(self, case, pipe, config):
        calls = count_calls(pipe.transformer.single_transformer_blocks[-1].attn.to_q)
        pipe.transformer.enable_cache(config(pipe))
        first = case.run(pipe, num_inference_steps=6)
        assert 0 < len(calls) < 6
        assert_close(case.run(pipe, num_inference_steps=6), first, **EXACT)
        pipe.transformer.disable_cache()
        calls.clear()
        assert_close(case.run(pipe, num_inference_steps=6), output_of(case, 6), **EXACT)
        assert len(calls) == 6

    @pytest.mark.parametrize("config", CACHES.values(), ids=CACHES)
    def test_a_cache_gives_what_it_gives_flux_pipeline(self, pair, config):
        # In `FluxPipeline` the branches of guidance share the state of the caches that have no contexts.
        guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
        outputs = []
        for pipe in pair:
            pipe.transformer.enable_cache(config(pipe))
            mixes = pipe.transformer._cache_config.__class__ in (PyramidAttentionBroadcastConfig, FasterCacheConfig)
            outputs.append(pipe(**call_kwargs(num_inference_steps=6, **({} if mixes else guided))).images)
        assert_close(outputs[1], outputs[0], **EXACT)

    def test_a_cache_that_never_hits_changes_nothing(self, case, pipe):
        inputs = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
        uncached = case.run(pipe, **inputs)
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
        assert_close(case.run(pipe, **inputs), uncached, **EXACT)


def lora_layers(module: nn.Module, targets: tuple[str, ...], seed: int, rank: int = 2) -> dict[str, torch.Tensor]:
    """Random LoRA weights of the linear layers of `module` whose names end in one of `targets`."""
    generator, layers = seeded(seed), {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(targets):
            layers[f"{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator) / 4
            layers[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator) / 4
    return layers


@cache
def lora_of(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Layers of a LoRA per component."""
    pipe = tiny_pipeline(FluxPipeline)
    return {
        "transformer": lora_layers(pipe.transformer, ("to_q", "to_v", "proj_out"), seed),
        "text_encoder": lora_layers(pipe.text_encoder, ("q_proj", "v_proj"), seed),
    }


def add_lora(pipe: Any, seed: int = 0, name: str = "style") -> None:
    layers = lora_of(seed)
    pipe.load_lora_weights(
        {f"{part}.{key}": value for part in layers for key, value in layers[part].items()}, adapter_name=name
    )


class TestLora:
    @pytest.fixture
    def adapted(self, case: Case, pipe: Any, base: torch.Tensor) -> torch.Tensor:
        """The output with an adapter, which `pipe` has from here on."""
        add_lora(pipe)
        output = case.run(pipe)
        assert different(output, base)
        return output

    def test_scales_of_the_call_and_of_the_adapter_agree(self, case, pipe, base, adapted):
        none = case.run(pipe, joint_attention_kwargs={"scale": 0.0})
        half = case.run(pipe, joint_attention_kwargs={"scale": 0.5})
        pipe.set_adapters("style", 0.0)
        assert_close(none, base, rtol=0, atol=1e-6)
        assert_close(case.run(pipe), base, rtol=0, atol=1e-6)
        pipe.set_adapters("style", 0.5)
        assert_close(case.run(pipe), half, rtol=0, atol=1e-5)
        assert different(half, base)
        assert different(half, adapted)
        pipe.set_adapters("style", 1.0)
        assert_close(case.run(pipe), adapted, rtol=0, atol=1e-6)

    def test_fusing_changes_nothing_and_is_undone(self, case, pipe, base, adapted):
        parts = ["transformer", "text_encoder"]
        pipe.fuse_lora(components=parts)
        assert pipe.num_fused_loras == 1
        assert_close(case.run(pipe), adapted, rtol=0, atol=1e-4)
        pipe.unfuse_lora(components=parts)
        assert pipe.num_fused_loras == 0
        assert_close(case.run(pipe), adapted, rtol=0, atol=1e-4)
        pipe.unload_lora_weights()
        assert_close(case.run(pipe), base, rtol=0, atol=1e-4)

    def test_unloading_restores_every_bit(self, case, pipe, base, adapted):
        pipe.unload_lora_weights()
        assert pipe.get_list_adapters() == {}
        assert_close(case.run(pipe), base, **EXACT)

    def test_disabling_and_deleting(self, case, pipe, base, adapted):
        pipe.disable_lora()
        assert_close(case.run(pipe), base, **EXACT)
        pipe.enable_lora()
        assert_close(case.run(pipe), adapted, **EXACT)
        pipe.delete_adapters("style")
        assert_close(case.run(pipe), base, **EXACT)

    def test_several_adapters_are_chosen_by_name(self, case, pipe, adapted):
        add_lora(pipe, seed=1, name="other")
        assert pipe.get_list_adapters() == dict.fromkeys(["transformer", "text_encoder"], ["style", "other"])
        pipe.set_adapters(["style", "other"])
        both = case.run(pipe)
        pipe.set_adapters("other")
        other = case.run(pipe)
        assert all(different(*pictures) for pictures in [(both, other), (both, adapted), (other, adapted)])
        pipe.set_adapters("style")
        assert_close(case.run(pipe), adapted, **EXACT)
        with pytest.raises(ValueError, match="not in the list of present adapters"):
            pipe.set_adapters("missing")

    def test_saved_weights_reload(self, case, pipe, adapted, tmp_path):
        layers = {f"{part}_lora_layers": weights for part, weights in lora_of(0).items()}
        case.pipeline_class.save_lora_weights(tmp_path, **layers)
        fresh = tiny_pipeline(case.pipeline_class)
        fresh.load_lora_weights(tmp_path)
        assert_close(case.run(fresh), adapted, **EXACT)

    def test_a_lora_gives_what_it_gives_flux_pipeline(self, pair):
        for pipe in pair:
            add_lora(pipe)
        stock, ours = (pipe(**call_kwargs(joint_attention_kwargs={"scale": 0.7})).images for pipe in pair)
        assert_close(ours, stock, **EXACT)


def ip_adapter(transformer: Any, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter in the form that `load_ip_adapter` takes."""
    generator, config, width = seeded(seed), transformer.config, transformer.inner_dim
    text, pooled, tokens = config.joint_attention_dim, config.pooled_projection_dim, 4
    shapes = {"proj.weight": (tokens * text, pooled), "proj.bias": (tokens * text,)}
    shapes |= {"norm.weight": (text,), "norm.bias": (text,)}
    layers = {
        f"{block}.to_{kind}_ip.{part}": (width, text) if part == "weight" else (width,)
        for block in range(config.num_layers)
        for kind in "kv"
        for part in ("weight", "bias")
    }
    return {
        "image_proj": {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        "ip_adapter": {name: torch.randn(shape, generator=generator) for name, shape in layers.items()},
    }


def add_ip_adapters(pipe: Any, count: int = 1) -> dict[str, Any]:
    """Load adapters; returns the arguments of the call that use them."""
    weights = [ip_adapter(pipe.transformer, seed) for seed in range(count)]
    pipe.load_ip_adapter(weights, weight_name=[""] * count, image_encoder_pretrained_model_name_or_path=None)
    pooled = pipe.transformer.config.pooled_projection_dim
    names = ("ip_adapter_image_embeds", "negative_ip_adapter_image_embeds")
    return {
        name: [torch.randn(1, 1, pooled, generator=seeded(10 * sign + index)) for index in range(count)]
        for sign, name in enumerate(names)
    }


class TestIPAdapter:
    @pytest.mark.parametrize("count", [1, 2])
    def test_its_scale_and_unloading(self, case, pipe, base, count):
        embeds = add_ip_adapters(pipe, count)
        pipe.set_ip_adapter_scale(0.0)
        assert_close(case.run(pipe, **embeds), base, rtol=0, atol=1e-5)
        pipe.set_ip_adapter_scale(1.0)
        assert different(case.run(pipe, **embeds), base)
        pipe.unload_ip_adapter()
        assert_close(case.run(pipe), base, **EXACT)

    def test_each_branch_of_guidance_has_its_own_picture(self, case, pipe):
        inputs = {**add_ip_adapters(pipe), "negative_prompt": "ugly", "true_cfg_scale": 2.0}
        output = case.run(pipe, **inputs)
        same = {**inputs, "negative_ip_adapter_image_embeds": inputs["ip_adapter_image_embeds"]}
        assert different(case.run(pipe, **same), output)

    def test_it_gives_what_it_gives_flux_pipeline(self, pair):
        inputs = [add_ip_adapters(pipe, 2) for pipe in pair]
        guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0, "num_images_per_prompt": 2}
        stock, ours = (pipe(**call_kwargs(**guided, **embeds)).images for pipe, embeds in zip(pair, inputs))
        assert_close(ours, stock, **EXACT)


class TestTextualInversion:
    def test_a_learned_word_gives_what_it_gives_flux_pipeline(self, pipeline_class):
        word = {"<thing>": torch.randn(24, generator=seeded(3))}
        outputs = []
        for kind in (FluxPipeline, pipeline_class):
            components = tiny_components()
            # The tokenizers are shared by all tests.
            pipe = tiny_pipeline(kind, tokenizer=copy.deepcopy(components["tokenizer"]))
            before = pipe(**call_kwargs(prompt="a <thing>")).images
            pipe.load_textual_inversion(word, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
            outputs.append(pipe(**call_kwargs(prompt="a <thing>")).images)
            assert different(before, outputs[-1])
        assert_close(outputs[1], outputs[0], **EXACT)


class TestExecution:
    @pytest.fixture
    def backend_calls(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[None]]:
        """Grows with every attention of the backend `_native_math`; the process' own backend is put back."""
        name, calls = AttentionBackendName._NATIVE_MATH, []
        function = _AttentionBackendRegistry._backends[name]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            return function(*args, **kwargs)

        monkeypatch.setitem(_AttentionBackendRegistry._backends, name, counted)
        before, _ = _AttentionBackendRegistry.get_active_backend()
        yield calls
        _AttentionBackendRegistry.set_active_backend(before)

    def test_an_attention_backend_is_used_in_every_block(self, case, pipe, base, backend_calls):
        active, _ = _AttentionBackendRegistry.get_active_backend()
        pipe.transformer.set_attention_backend("_native_math")
        # Only the processors' own setting shall count.
        _AttentionBackendRegistry.set_active_backend(active)
        assert_close(case.run(pipe), base, rtol=0, atol=1e-5)
        assert len(backend_calls) >= 3 * NUM_BLOCKS
        pipe.transformer.reset_attention_backend()
        backend_calls.clear()
        assert_close(case.run(pipe), base, **EXACT)
        assert not backend_calls

    def test_fused_projections_change_rounding_only(self, case, pipe, base):
        pipe.transformer.fuse_qkv_projections()
        assert pipe.transformer.transformer_blocks[0].attn.fused_projections
        assert_close(case.run(pipe), base, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("level", [{"offload_type": "leaf_level"}, {"num_blocks_per_group": 1}])
    def test_group_offloading_moves_weights_and_changes_nothing(self, case, pipe, base, monkeypatch, level):
        moved, onload = [], ModuleGroup.onload_

        def recorded(group: ModuleGroup) -> None:
            moved.append(group)
            onload(group)

        monkeypatch.setattr(ModuleGroup, "onload_", recorded)
        pipe.enable_group_offload(onload_device=torch.device("cpu"), **{"offload_type": "block_level", **level})
        assert_close(case.run(pipe), base, **EXACT)
        assert len(set(map(id, moved))) > NUM_BLOCKS

    def test_layerwise_casting_stores_eight_bits(self, case, pipe, base):
        pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
        output = case.run(pipe)
        assert pipe.transformer.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
        assert different(output, base)
        assert (output - base).abs().mean() < 0.1

    def test_layerwise_casting_gives_what_it_gives_flux_pipeline(self, pair):
        for pipe in pair:
            pipe.to(dtype=torch.bfloat16)
            pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
        stock, ours = (pipe(**call_kwargs()).images for pipe in pair)
        assert_close(ours, stock, **EXACT)

    def test_vae_tiling_and_slicing_reach_the_vae(self, pipe):
        pipe.vae.enable_tiling()
        pipe.vae.enable_slicing()
        assert pipe.vae.use_tiling
        assert pipe.vae.use_slicing
