"""LoRA-Fusion: on, off and out to the bit, LoRAs of any kind and layout, offloading, storage, other methods."""

import copy

import pytest
import torch
from diffusers import FluxPipeline, PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_group_offloading
from safetensors.torch import save_file

from benchmarks.support.lora_files import make
from benchmarks.support.tiny.lora_fusion import small_lora, tiny_fusion
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora, velocity
from diffusers_flux_ext import (
    EntityRegions,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    FluxLoRAFusion,
    LoRAError,
    ReferenceImages,
    convert_lora,
    disable_lora_fusion,
    enable_lora_fusion,
    load_lora,
    load_timestep_lora,
    unload_lora,
)
from diffusers_flux_ext.testing import call_kwargs, quiet, tiny_pipeline
from tests.lora.lora_evaluation import assert_bit_equal


FUSION = tiny_fusion()
LORAS = {"a": small_lora(1, 2), "b": small_lora(2, 3)}


def picture(pipe, **overrides):
    return pipe(**call_kwargs(num_inference_steps=2, **overrides)).images


def with_loras(pipeline_class=FluxConditionedPipeline, names="ab", **components):
    pipe = tiny_pipeline(pipeline_class, **components)
    for name in names:
        load_lora(pipe, LORAS[name], name, 0.8)
    return pipe


@pytest.fixture(scope="module")
def gated():
    """A picture with both LoRAs under the gates."""
    pipe = with_loras()
    enable_lora_fusion(pipe, FUSION)
    return picture(pipe)


def hooks_of(module):
    return [name for name, child in module.named_modules() if child._forward_hooks or child._forward_pre_hooks]


def variants_of(module):
    return [variant for child in module.modules() for variant in getattr(child, "lora_variant", {}).values()]


@pytest.mark.parametrize("pipeline_class", [FluxPipeline, FluxConditionedPipeline])
def test_on_off_and_out(pipeline_class, gated):
    pipe = tiny_pipeline(pipeline_class)
    plain, before = picture(pipe), {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    for name in "ab":
        load_lora(pipe, LORAS[name], name, 0.8)
    summed, weights = picture(pipe), list(pipe.transformer.state_dict())
    enable_lora_fusion(pipe, FUSION)
    assert torch.equal(picture(pipe), gated)
    assert (gated - summed).abs().max() > 0.01
    assert list(pipe.transformer.state_dict()) == weights
    disable_lora_fusion(pipe)
    assert torch.equal(picture(pipe), summed)
    assert not hooks_of(pipe.transformer)
    assert not variants_of(pipe.transformer)
    disable_lora_fusion(pipe.transformer)
    enable_lora_fusion(pipe.transformer, FUSION)
    unload_lora(pipe)
    assert torch.equal(picture(pipe), plain)
    disable_lora_fusion(pipe)
    assert not hooks_of(pipe.transformer)
    assert_bit_equal(pipe.transformer.state_dict(), before)


def test_nothing_is_added_at_scale_and_weight_zero():
    pipe = with_loras()
    plain = picture(tiny_pipeline(FluxConditionedPipeline))
    enable_lora_fusion(pipe, FUSION, scale=0.0)
    assert torch.equal(picture(pipe), plain)
    enable_lora_fusion(pipe, FUSION, scale=1.0)
    pipe.disable_lora()
    assert torch.equal(picture(pipe), plain)
    pipe.enable_lora()
    pipe.set_adapters(["a", "b"], [0.0, 0.0])
    assert torch.equal(picture(pipe), plain)


def test_the_scale_multiplies_what_gates_let_through():
    base, loras = torch.randn(1, 4, 96), [torch.randn(1, 4, 96)]
    gate = FUSION.gates["blocks.0.attn.a_to_qkv"]
    assert gate(base, loras).abs().max() > 0.1
    pipe = with_loras(names="a")
    attn, captured = pipe.transformer.transformer_blocks[0].attn, {}
    attn.register_forward_hook(lambda module, args, kwargs, output: captured.update(x=kwargs), with_kwargs=True)
    enable_lora_fusion(pipe, FUSION, scale=0.5)
    picture(pipe)
    x = captured["x"]["hidden_states"]
    outputs = [layer(x).clone() for layer in (attn.to_q, attn.to_k)]
    value = attn.to_v(x)
    # The last part completes the layer, whose first outputs have been handed out before.
    disable_lora_fusion(pipe)
    layers = (attn.to_q, attn.to_k, attn.to_v)
    plain = torch.cat([layer.base_layer(x) for layer in layers], dim=-1)
    lora = torch.cat([layer(x) for layer in layers], dim=-1) - plain
    expected = (plain + 0.5 * gate(plain, [lora])).chunk(3, dim=-1)
    torch.testing.assert_close(value, expected[2], atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs[0], plain.chunk(3, dim=-1)[0])


def test_chosen_adapters_are_gated_and_others_added():
    pipe = with_loras()
    enable_lora_fusion(pipe, FUSION, "a", scale=0.0)
    only_b = with_loras(names="b")
    torch.testing.assert_close(picture(pipe), picture(only_b), atol=1e-5, rtol=1e-5)
    enable_lora_fusion(pipe, FUSION, ["a"])
    one = picture(pipe)
    pipe.set_adapters(["a"], 0.8)
    enable_lora_fusion(only_b, FUSION, ["b"])
    assert not torch.allclose(one, picture(pipe), atol=1e-3)


def test_loras_come_and_go_meanwhile(gated):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    enable_lora_fusion(pipe, FUSION)
    plain = picture(pipe)
    load_lora(pipe, LORAS["a"], "a", 0.8)
    one = picture(pipe)
    load_lora(pipe, LORAS["b"], "b", 0.8)
    assert torch.equal(picture(pipe), gated)
    unload_lora(pipe, "b")
    assert torch.equal(picture(pipe), one)
    load_lora(pipe, LORAS["b"], "b", 0.8)
    pipe.set_adapters("a", 0.8)
    assert torch.equal(picture(pipe), one)
    pipe.unload_lora_weights()
    assert torch.equal(picture(pipe), plain)


def converted(lora):
    tensors, _ = convert_lora(lora, to="diffusers")
    return tensors


@pytest.mark.parametrize("kept", [("attn.to_q", "attn.add_k_proj"), ("proj_mlp", "ff.")])
def test_partial_loras_count_as_updates_of_zero(kept):
    whole = converted(LORAS["a"])
    part = {key: value for key, value in whole.items() if any(name in key for name in kept)}
    zeros = {key: value if key in part else torch.zeros_like(value) for key, value in whole.items()}
    pictures = []
    for lora in (part, zeros):
        pipe = tiny_pipeline(FluxConditionedPipeline)
        load_lora(pipe, lora)
        enable_lora_fusion(pipe, FUSION)
        pictures.append(picture(pipe))
    assert part
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=1e-5)


def test_fused_projections_give_the_same(gated):
    pipe = with_loras()
    enable_lora_fusion(pipe, FUSION)
    pipe.transformer.fuse_qkv_projections()
    torch.testing.assert_close(picture(pipe), gated, atol=1e-5, rtol=1e-5)
    pipe.transformer.unfuse_qkv_projections()
    assert torch.equal(picture(pipe), gated)


def test_other_products_are_gated_like_the_loras_that_they_equal():
    file, pictures = make("kohya_lokr"), []
    for tensors in (file.state_dict, converted(file.state_dict)):
        pipe = tiny_pipeline(FluxConditionedPipeline)
        load_lora(pipe, tensors, "x", 0.3)
        enable_lora_fusion(pipe, FUSION)
        pictures.append(picture(pipe))
    torch.testing.assert_close(*pictures, atol=1e-3, rtol=1e-3)
    disable_lora_fusion(pipe)


def test_a_timestep_lora_and_dora_are_gated_too():
    pipe = with_loras(names="a")
    load_timestep_lora(pipe, tiny_timestep_lora(), "timed")
    load_lora(pipe, make("onetrainer_dora").state_dict, "dora", 0.3)
    summed, kinds = picture(pipe), {type(variant) for variant in variants_of(pipe.transformer)}
    enable_lora_fusion(pipe, FUSION)
    assert (picture(pipe) - summed).abs().max() > 0.01
    disable_lora_fusion(pipe)
    assert {type(variant) for variant in variants_of(pipe.transformer)} == kinds
    assert torch.equal(picture(pipe), summed)


@pytest.mark.parametrize("kind, first", [("block_level", "fusion"), ("leaf_level", "offload")])
def test_group_offloading(kind, first, gated):
    pipe = with_loras()
    if first == "fusion":
        enable_lora_fusion(pipe, FUSION)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(pipe.transformer, onload_device=torch.device("cpu"), offload_type=kind, **blocks)
    if first == "offload":
        enable_lora_fusion(pipe, FUSION)
    assert torch.equal(picture(pipe), gated)
    disable_lora_fusion(pipe)
    assert torch.equal(picture(pipe), picture(with_loras()))


def test_storage_in_eight_bits():
    pipe, rounded = tiny_pipeline(FluxConditionedPipeline), tiny_pipeline(FluxConditionedPipeline)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    rounded.transformer.load_state_dict({key: w.float() for key, w in pipe.transformer.state_dict().items()})
    for one in (pipe, rounded):
        load_lora(one, LORAS["a"], "a", 0.8)
        enable_lora_fusion(one, FUSION)
    assert torch.equal(picture(pipe), picture(rounded))
    for one in (pipe, rounded):
        disable_lora_fusion(one)
    assert torch.equal(picture(pipe), picture(rounded))


def test_batches_and_true_cfg():
    pipe = with_loras()
    enable_lora_fusion(pipe, FUSION)
    guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
    both = {**guided, "negative_prompt": ["ugly", "ugly"]}
    together = picture(pipe, prompt=["a cat", "a dog"], num_images_per_prompt=2, **both)
    alone = picture(pipe, prompt="a cat", num_images_per_prompt=2, **guided)
    assert together.shape[0] == 4
    torch.testing.assert_close(together[:2], alone, atol=1e-4, rtol=1e-4)


def test_other_conditions_in_any_order():
    pipe = with_loras()
    conditions = [
        EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)], max_sequence_length=16),
        ReferenceImages([torch.rand(1, 3, 32, 32)], preferred_size=False),
    ]
    without = picture(pipe, conditions=conditions)
    enable_lora_fusion(pipe, FUSION)
    one, other = (picture(pipe, conditions=order) for order in (conditions, conditions[::-1]))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert (one - without).abs().max() > 0.01
    assert (one - picture(pipe)).abs().max() > 0.01


def test_pipelines_share_it_and_copies_have_their_own(gated):
    pipe = with_loras()
    enable_lora_fusion(pipe, FUSION)
    other = quiet(FluxEliGenPipeline.from_pipe(pipe))
    assert torch.equal(picture(other), gated)
    pipe.transformer, original = copy.deepcopy(pipe.transformer), pipe.transformer
    disable_lora_fusion(original)
    assert torch.equal(picture(pipe), gated)
    assert not torch.equal(picture(other), gated)


def test_bfloat16_is_finite():
    pipe = with_loras().to(torch.bfloat16)
    enable_lora_fusion(pipe, FUSION)
    assert picture(pipe).isfinite().all()
    assert FUSION.dtype == torch.float32


@pytest.mark.slow
def test_compiled_blocks_share_their_code():
    pipe, compiled = with_loras(FluxPipeline, "a"), []
    load_timestep_lora(pipe, tiny_timestep_lora(), "timed")

    def backend(module, inputs):
        compiled.append(module)
        return module.forward

    enable_lora_fusion(pipe, FUSION)
    expected = picture(pipe)
    for block in pipe.transformer.single_transformer_blocks[1:]:
        block.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(picture(pipe), expected, atol=1e-5, rtol=1e-5)
    assert len(compiled) == 1


def test_caches_that_skip_attention_alone_are_refused():
    pipe = with_loras()
    enable_lora_fusion(pipe, FUSION)
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(-1, 1001),
            spatial_attention_block_identifiers=("transformer_blocks",), current_timestep_callback=lambda: 500,
        )
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="no cache that skips attention"):
        picture(pipe)


def test_processors_that_read_queries_first_are_refused():
    pipe = with_loras()
    enable_lora_fusion(pipe, FUSION)
    attn = pipe.transformer.transformer_blocks[1].attn
    attn.set_processor(lambda attn, hidden_states, *args, **kwargs: attn.norm_q(attn.to_q(hidden_states)))
    with pytest.raises(RuntimeError, match=r"queries were read before all of .*blocks.1.attn.to_v"):
        picture(pipe)


def test_gradients_reach_gates_and_loras():
    pipe, fusion = with_loras(FluxPipeline, "a"), tiny_fusion().requires_grad_(True)
    enable_lora_fusion(pipe, fusion)
    lora = pipe.transformer.single_transformer_blocks[0].proj_mlp.lora_B["a"].weight.requires_grad_(True)
    gate = fusion.gates["single_blocks.0.to_qkv_mlp"].weight_cross
    velocity(pipe.transformer, [500.0], grad=True).square().sum().backward()
    for parameter in (lora, gate):
        step, losses = 1e-2 * parameter.grad / parameter.grad.norm(), []
        for factor in (1, -2):
            parameter.data += factor * step
            losses.append(velocity(pipe.transformer, [500.0]).square().sum())
        parameter.data += step
        torch.testing.assert_close(losses[0] - losses[1], 2 * (step * parameter.grad).sum(), atol=0, rtol=0.05)


def test_loras_under_gates_cannot_be_fused():
    pipe = with_loras()
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    enable_lora_fusion(pipe, FUSION)
    with pytest.raises(LoRAError, match="disable_lora_fusion"):
        pipe.fuse_lora()
    assert_bit_equal(pipe.transformer.state_dict(), before)
    disable_lora_fusion(pipe)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="unfuse_lora"):
        enable_lora_fusion(pipe, FUSION)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((tiny_fusion(inner_dim=64),), ValueError, "width 64; this one is 32"),
        ((tiny_fusion(num_layers=3),), ValueError, "`num_layers` 3; this one has only 2"),
        ((torch.nn.Linear(1, 1),), TypeError, "expected a FluxLoRAFusion"),
        ((FUSION, ["a", "c"]), ValueError, r"has the adapters \['a'\]"),
        ((FUSION, []), ValueError, "`adapter_names` is \\[\\]"),
        ((FUSION, "a", float("nan")), ValueError, "finite"),
        ((FUSION, "a", "strong"), ValueError, "`scale` is 'strong'; expected a finite number"),
    ],
)
def test_bad_inputs(arguments, error, message):
    pipe = with_loras(names="a")
    with pytest.raises(error, match=message):
        enable_lora_fusion(pipe, *arguments)
    assert not hooks_of(pipe.transformer)
    with pytest.raises(TypeError, match="got a AutoencoderKL"):
        enable_lora_fusion(pipe.vae, FUSION)


def test_the_model_is_saved_and_read(tmp_path):
    FUSION.save_pretrained(tmp_path / "folder")
    save_file(FUSION.state_dict(), tmp_path / "model.safetensors")
    folder = FluxLoRAFusion.from_pretrained(tmp_path / "folder")
    single = FluxLoRAFusion.from_single_file(tmp_path / "model.safetensors", torch_dtype=torch.bfloat16)
    assert_bit_equal(folder.state_dict(), FUSION.state_dict())
    assert (single.config.num_layers, single.config.num_single_layers, single.config.inner_dim) == (2, 3, 32)
    assert single.dtype == torch.bfloat16
    assert "blocks.0.attn.a_to_qkv" in FUSION.gates
    with pytest.raises(ValueError, match="not a LoRA-Fusion"):
        FluxLoRAFusion.from_single_file(LORAS["a"])
    with pytest.raises(ValueError, match="missing, surplus or of a wrong shape"):
        FluxLoRAFusion.from_single_file({key: w for key, w in FUSION.state_dict().items() if "s___1___ff" not in key})
    with pytest.raises(ValueError, match="no gate for 'x_embedder'"):
        FUSION("x_embedder", torch.ones(1, 32), [])
