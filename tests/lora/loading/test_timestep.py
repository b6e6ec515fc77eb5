"""Timestep LoRA: a LoRA baked at each timestep, on, off and out to the bit, batches, offloading, other methods."""

import copy

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks import apply_group_offloading
from safetensors.torch import save_file

from benchmarks.support.tiny.lora_fusion import small_lora
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora, velocity
from diffusers_flux_ext import (
    EntityRegions,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    LoRAError,
    ReferenceImages,
    bake_timestep_lora,
    convert_lora,
    inspect_lora,
    load_lora,
    load_timestep_lora,
    unload_lora,
)
from diffusers_flux_ext.lora.loading.load import active_weights
from diffusers_flux_ext.testing import call_kwargs, quiet, tiny_pipeline, tiny_transformer
from tests.lora.lora_evaluation import assert_bit_equal


LORA = tiny_timestep_lora(1)
LAYER = "base_model.model.transformer_blocks.0.attn.to_q"


def picture(pipe, **overrides):
    return pipe(**call_kwargs(num_inference_steps=2, **overrides)).images


def timed_pipeline(pipeline_class=FluxConditionedPipeline, **options):
    pipe = tiny_pipeline(pipeline_class)
    load_timestep_lora(pipe, LORA, "timed", **options)
    return pipe


@pytest.fixture(scope="module")
def drawn():
    """A picture with the LoRA at the published strength."""
    return picture(timed_pipeline())


@pytest.fixture(scope="module")
def untouched():
    """A pipeline without LoRAs."""
    return tiny_pipeline(FluxConditionedPipeline)


def hooks_of(module):
    return [name for name, child in module.named_modules() if child._forward_hooks or child._forward_pre_hooks]


@pytest.mark.parametrize("pipeline_class", [FluxPipeline, FluxConditionedPipeline])
def test_on_off_and_out(pipeline_class, drawn):
    pipe = tiny_pipeline(pipeline_class)
    plain, before = picture(pipe), {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    assert load_timestep_lora(pipe, LORA, "timed") == "timed"
    assert active_weights(pipe.transformer) == {"timed": 2.0}
    assert torch.equal(picture(pipe), drawn)
    assert (drawn - plain).abs().max() > 0.01
    pipe.disable_lora()
    assert torch.equal(picture(pipe), plain)
    pipe.enable_lora()
    assert torch.equal(picture(pipe), drawn)
    pipe.set_adapters("timed", 0.0)
    assert torch.equal(picture(pipe), plain)
    unload_lora(pipe, "timed")
    assert not hooks_of(pipe.transformer)
    assert torch.equal(picture(pipe), plain)
    assert_bit_equal(pipe.transformer.state_dict(), before)
    load_timestep_lora(pipe, LORA)
    pipe.unload_lora_weights()
    assert torch.equal(picture(pipe), plain)
    assert not hooks_of(pipe.transformer)


def test_it_equals_the_lora_baked_at_each_timestep():
    strength = -0.5
    timed, static = timed_pipeline(strength=strength), tiny_pipeline(FluxConditionedPipeline)
    timesteps = [1000.0, 617.25, 0.0]
    together, base = velocity(timed.transformer, timesteps), velocity(static.transformer, timesteps)
    assert (together - base).abs().amax(dim=(1, 2)).min() > 1e-3
    for index, timestep in enumerate(timesteps):
        load_lora(static, bake_timestep_lora(LORA, timestep, strength), "baked")
        expected = velocity(static.transformer, [timestep])
        torch.testing.assert_close(velocity(timed.transformer, [timestep]), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[index : index + 1], expected, atol=1e-5, rtol=1e-5)
        unload_lora(static, "baked")
    assert not torch.allclose(
        *(bake_timestep_lora(LORA, t)[f"transformer.{LAYER[17:]}.lora_A.weight"] for t in (1, 9))
    )


def test_one_timestep_serves_a_whole_batch():
    transformer = timed_pipeline().transformer
    kwargs = {
        "timestep": torch.tensor([0.3]),
        "guidance": torch.tensor([3.5]),
        "pooled_projections": torch.ones(1, 24),
    }
    inputs = (torch.ones(2, 6, 64), torch.ones(2, 5, 40))
    ids = {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3)}
    with torch.no_grad():
        both = transformer(*inputs, **kwargs, **ids).sample
        one = transformer(*(tensor[:1] for tensor in inputs), **kwargs, **ids).sample
        positional = transformer(
            *inputs, kwargs["pooled_projections"], kwargs["timestep"], **ids, guidance=kwargs["guidance"]
        )
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-5)
    assert torch.equal(positional.sample, both)


def test_beside_other_loras_in_any_order():
    pictures, other = [], small_lora(2)
    for order in (0, 1):
        pipe = tiny_pipeline(FluxConditionedPipeline)
        for kind in (order, 1 - order):
            if kind:
                load_lora(pipe, other, "style", 0.5)
            else:
                load_timestep_lora(pipe, LORA, "timed")
        assert active_weights(pipe.transformer) == {"timed": 2.0, "style": 0.5}
        pictures.append(picture(pipe))
    torch.testing.assert_close(*pictures, atol=1e-5, rtol=1e-5)
    load_timestep_lora(pipe, tiny_timestep_lora(2), "second", 1.0)
    assert (picture(pipe) - pictures[0]).abs().max() > 1e-3
    unload_lora(pipe, "timed")
    unload_lora(pipe, "style")
    alone = tiny_pipeline(FluxConditionedPipeline)
    load_timestep_lora(alone, tiny_timestep_lora(2), "second", 1.0)
    assert torch.equal(picture(pipe), picture(alone))


@pytest.mark.parametrize("kind, first", [("block_level", "offload"), ("leaf_level", "lora")])
def test_group_offloading(kind, first, drawn):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    plain = picture(pipe)
    if first == "lora":
        load_timestep_lora(pipe, LORA, "timed")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(pipe.transformer, onload_device=torch.device("cpu"), offload_type=kind, **blocks)
    if first == "offload":
        load_timestep_lora(pipe, LORA, "timed")
    assert torch.equal(picture(pipe), drawn)
    unload_lora(pipe)
    assert torch.equal(picture(pipe), plain)


def test_storage_in_eight_bits():
    pipe, rounded = tiny_pipeline(FluxConditionedPipeline), tiny_pipeline(FluxConditionedPipeline)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    rounded.transformer.load_state_dict({key: w.float() for key, w in pipe.transformer.state_dict().items()})
    for one in (pipe, rounded):
        load_timestep_lora(one, LORA)
    assert torch.equal(picture(pipe), picture(rounded))


def test_batches_and_true_cfg():
    pipe = timed_pipeline()
    together = picture(
        pipe, prompt=["a cat", "a dog"], negative_prompt=["ugly"] * 2, true_cfg_scale=2.0, num_images_per_prompt=2
    )
    alone = picture(pipe, prompt="a cat", negative_prompt="ugly", true_cfg_scale=2.0, num_images_per_prompt=2)
    assert together.shape[0] == 4
    torch.testing.assert_close(together[:2], alone, atol=1e-4, rtol=1e-4)


def test_other_conditions_in_any_order(drawn):
    conditions = [
        EntityRegions(["a red dog"], [(0.0, 0.0, 0.5, 1.0)], max_sequence_length=16),
        ReferenceImages([torch.rand(1, 3, 32, 32)], preferred_size=False),
    ]
    without = picture(tiny_pipeline(FluxConditionedPipeline), conditions=conditions)
    one, other = (picture(timed_pipeline(), conditions=order) for order in (conditions, conditions[::-1]))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert (one - without).abs().max() > 0.01
    assert (one - drawn).abs().max() > 0.01


def test_pipelines_share_it_and_copies_have_their_own(drawn):
    pipe = timed_pipeline()
    other = quiet(FluxEliGenPipeline.from_pipe(pipe))
    assert torch.equal(picture(other), drawn)
    pipe.transformer, original = copy.deepcopy(pipe.transformer), pipe.transformer
    unload_lora(other)
    assert not hooks_of(original)
    assert torch.equal(picture(pipe), drawn)


def test_bfloat16_is_finite():
    pipe = timed_pipeline().to(torch.bfloat16)
    assert picture(pipe).isfinite().all()


def test_a_file_and_what_lies_beside_it(tmp_path, drawn):
    save_file(LORA, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 30, "peft_type": "LORA"}')
    pipe = tiny_pipeline(FluxConditionedPipeline)
    load_timestep_lora(pipe, tmp_path)
    assert torch.equal(picture(pipe), drawn)


def test_other_functions_name_this_one():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    for refused in (pipe.load_lora_weights, lambda lora: load_lora(pipe, lora), convert_lora):
        with pytest.raises(LoRAError, match="load_timestep_lora"):
            refused(LORA)
    assert_bit_equal(pipe.transformer.state_dict(), before)
    report = inspect_lora(LORA)
    assert report.kinds == {"timestep": len(LORA) // 6}
    assert any("load_timestep_lora" in warning for warning in report.warnings)
    load_timestep_lora(pipe, LORA)
    with pytest.raises(LoRAError, match="bake_timestep_lora"):
        pipe.fuse_lora()


def without(part):
    return {key: value for key, value in LORA.items() if key != f"{LAYER}.{part}"}


@pytest.mark.parametrize(
    "source, options, message",
    [
        (small_lora(), {}, "this is not a timestep LoRA. Use `load_lora`"),
        (without("lora_time_beta.bias"), {}, "not a layer of a timestep LoRA"),
        ({**LORA, f"{LAYER}.lora_time_gamma.weight": torch.ones(2, 256)}, {}, "not a layer of a timestep LoRA"),
        ({**LORA, f"{LAYER}.lora_time_gamma.weight": torch.ones(3, 128)}, {}, "not a layer of a timestep LoRA"),
        ({**LORA, f"{LAYER}.lora_time_gamma.weight": torch.ones(3)}, {}, "not a layer of a timestep LoRA"),
        ({**LORA, f"{LAYER}.lora_time_beta.bias": torch.ones(3, 1)}, {}, "not a layer of a timestep LoRA"),
        (without("lora_A.weight"), {}, "incomplete LoRA"),
        ({**LORA, f"{LAYER}.lora_B.weight": torch.ones(64, 3)}, {}, "64"),
        ({**LORA, "something": torch.ones(1)}, {}, "something"),
        ({**LORA, f"{LAYER}.lora_B.weight": torch.full((32, 3), float("nan"))}, {}, "NaN"),
        (LORA, {"strength": float("inf")}, "finite"),
        (LORA, {"adapter_name": "a.b"}, "without a dot"),
    ],
)
def test_bad_inputs_change_nothing(untouched, source, options, message):
    pipe = untouched
    with pytest.raises(LoRAError, match=message):
        load_timestep_lora(pipe, source, **options)
    assert not hasattr(pipe.transformer, "peft_config")
    assert not hooks_of(pipe.transformer)


def test_bad_timesteps_and_calls():
    with pytest.raises(ValueError, match="expected one in"):
        bake_timestep_lora(LORA, 1000.5)
    with pytest.raises(ValueError, match="finite number"):
        bake_timestep_lora(LORA, 1.0, float("nan"))
    with pytest.raises(LoRAError, match="`strength` is '2'; expected a finite number"):
        load_timestep_lora(timed_pipeline(), LORA, "other", "2")
    transformer = timed_pipeline().transformer
    with pytest.raises(RuntimeError, match="only inside a call of its transformer"):
        transformer.transformer_blocks[0].attn.to_q(torch.ones(1, 2, 32))
    with pytest.raises(TypeError, match="Unknown arguments"):
        load_timestep_lora(timed_pipeline(), LORA, "other", weight="x")


def test_blocks_that_the_model_lacks_are_reported(caplog):
    pipe = tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(0, num_single_layers=1))
    load_timestep_lora(pipe, LORA)
    assert "does not have 6 of the 33 layers" in caplog.text
    assert picture(pipe).isfinite().all()
