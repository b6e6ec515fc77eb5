"""Loading a LoRA into a pipeline equals adding its update to the weights by hand, and unloading leaves no trace."""

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.hooks import apply_group_offloading
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from benchmarks.support.lora_files import FORMATS, Sizes, make
from benchmarks.support.lora_files.readers import components, read_loaded
from benchmarks.support.lora_files.verdict import judge, keeps_magnitudes
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    LoRAError,
    convert_lora,
    load_lora,
    unload_lora,
)
from diffusers_flux_ext.lora.loading.load import active_weights
from diffusers_flux_ext.testing import call_kwargs, quiet, seeded, tiny_pipeline
from tests.lora.lora_evaluation import assert_bit_equal


pytestmark = pytest.mark.versions
MODELS = ("transformer", "text_encoder", "text_encoder_2")


def weights_of(pipe):
    return {
        f"{name}.{key}": value.clone() for name in MODELS for key, value in getattr(pipe, name).state_dict().items()
    }


def picture(pipe, **overrides):
    return pipe(**call_kwargs(**{"num_inference_steps": 2, **overrides})).images


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_applied_whole(tmp_path, format):
    file = make(format)
    reading = read_loaded(file, tmp_path)
    assert judge(file, reading) == "exact"
    assert not file.dora or keeps_magnitudes(file, reading)


@pytest.mark.parametrize(
    "format", ["diffusers_peft", "kohya_lokr", "kohya_loha", "aitoolkit_full", "onetrainer_dora", "aitoolkit_dora",
               "bfl_control", "comfy_extract", "onetrainer_comfy"]
)  # fmt: skip
def test_unloading_restores_every_bit(format):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    before, modules = weights_of(pipe), [name for name, _ in pipe.transformer.named_modules()]
    config = dict(pipe.transformer.config)
    file = make(format)
    pipe.load_lora_weights(file.state_dict, "first", metadata=file.metadata)
    pipe.unload_lora_weights()
    assert_bit_equal(weights_of(pipe), before)
    assert [name for name, _ in pipe.transformer.named_modules()] == modules
    assert dict(pipe.transformer.config) == config
    load_lora(pipe, file.state_dict, "second", metadata=file.metadata)
    unload_lora(pipe, "second")
    assert_bit_equal(weights_of(pipe), before)


@pytest.mark.parametrize("format", ["kohya_lokr", "kohya_loha", "aitoolkit_full", "onetrainer_dora", "kohya_dora"])
def test_other_products_switch_weigh_and_fuse_like_loras(format):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    plain, file = picture(pipe), make(format)
    pipe.load_lora_weights(file.state_dict, "other")
    strong = picture(pipe)
    assert (strong - plain).abs().max() > 1e-3
    pipe.set_adapters("other", 0.0)
    assert torch.equal(picture(pipe), plain)
    pipe.set_adapters("other", 1.0)
    pipe.disable_lora()
    assert torch.equal(picture(pipe), plain)
    pipe.enable_lora()
    assert torch.equal(picture(pipe), strong)
    pipe.fuse_lora()
    torch.testing.assert_close(picture(pipe), strong, atol=2e-4, rtol=1e-3)
    pipe.unfuse_lora()
    torch.testing.assert_close(picture(pipe), strong, atol=2e-4, rtol=1e-3)


def test_dora_is_weighed_between_the_weights_without_and_with_it():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    layer = "single_transformer_blocks.0.proj_out"
    x = torch.randn(1, 160, generator=seeded())
    plain = pipe.transformer.get_submodule(layer)(x)
    pipe.load_lora_weights(make("onetrainer_dora").state_dict, "dora")
    tuned = pipe.transformer.get_submodule(layer)(x)
    pipe.set_adapters("dora", 0.5)
    half = pipe.transformer.get_submodule(layer)(x)
    torch.testing.assert_close(half, (plain + tuned) / 2, atol=1e-5, rtol=1e-5)


def test_several_adapters_add_up_and_leave_one_by_one():
    files = [make("kohya"), make("xlabs", seed=1), make("kohya_lokr", seed=2)]
    pipe = tiny_pipeline(FluxConditionedPipeline)
    before = weights_of(pipe)
    for name, file, weight in zip("abc", files, (0.5, 1.0, -0.25)):
        assert load_lora(pipe, file.state_dict, name, weight) == name
    assert active_weights(pipe.transformer) == pytest.approx({"a": 0.5, "b": 1.0, "c": -0.25})
    together = picture(pipe)
    unload_lora(pipe, "b")
    assert active_weights(pipe.transformer) == pytest.approx({"a": 0.5, "c": -0.25})
    without = picture(pipe)
    assert (together - without).abs().max() > 1e-4
    load_lora(pipe, files[1].state_dict, "b", 1.0)
    torch.testing.assert_close(picture(pipe), together, atol=1e-5, rtol=1e-4)
    pipe.delete_adapters(["a", "b", "c"])
    assert_bit_equal(weights_of(pipe), before)


def test_text_encoders_and_their_norms_follow_the_weight():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    file = make("comfy_extract", "with_clip")
    plain = pipe.encode_prompt("a cat", "a cat", max_sequence_length=16)[1]
    norm = pipe.text_encoder.state_dict()
    before = {key: value.clone() for key, value in norm.items() if "layer_norm1.weight" in key}
    assert before
    pipe.load_lora_weights(file.state_dict, "clip")
    strong = pipe.encode_prompt("a cat", "a cat", max_sequence_length=16)[1]
    assert not torch.equal(strong, plain)
    full = {key: pipe.text_encoder.state_dict()[key].clone() for key in before}
    pipe.set_adapters("clip", 0.5)
    for key, value in before.items():
        now = pipe.text_encoder.state_dict()[key]
        torch.testing.assert_close(now, (value + full[key]) / 2)
    pipe.set_adapters("clip", 0.0)
    assert torch.equal(pipe.encode_prompt("a cat", "a cat", max_sequence_length=16)[1], plain)


@pytest.mark.parametrize("use_stream", [False])
@pytest.mark.parametrize("format", ["kohya", "kohya_lokr", "onetrainer_dora"])
def test_group_offloading_before_and_after(format, use_stream):
    plain = tiny_pipeline(FluxConditionedPipeline)
    pipe = tiny_pipeline(FluxConditionedPipeline)
    before, empty = weights_of(pipe), picture(pipe)
    apply_group_offloading(
        pipe.transformer, onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1,
        use_stream=use_stream,
    )  # fmt: skip
    for one in (plain, pipe):
        one.load_lora_weights(make(format).state_dict, "style")
    assert torch.equal(picture(pipe), picture(plain))
    pipe.unload_lora_weights()
    assert torch.equal(picture(pipe), empty)
    assert_bit_equal(weights_of(pipe), before)


@pytest.mark.parametrize("format", ["kohya", "kohya_lokr", "bfl_control"])
def test_storage_in_eight_bits(format):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    before = weights_of(pipe)
    channels = pipe.transformer.config.in_channels
    file = make(format)
    pipe.load_lora_weights(file.state_dict, "style", metadata=file.metadata)
    if format != "bfl_control":
        assert picture(pipe).isfinite().all()
    pipe.unload_lora_weights()
    assert_bit_equal(weights_of(pipe), before)
    assert pipe.transformer.config.in_channels == channels


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_files_stored_in_few_bits_run(dtype):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    plain = picture(pipe)
    pipe.load_lora_weights({key: value.to(dtype) for key, value in make("diffusers_peft").state_dict.items()})
    result = picture(pipe)
    assert result.isfinite().all()
    assert not torch.equal(result, plain)


def test_bfloat16_is_finite():
    pipe = tiny_pipeline(FluxConditionedPipeline).to(torch.bfloat16)
    for name in ("kohya", "onetrainer_dora", "kohya_lokr"):
        load_lora(pipe, make(name).state_dict, name, 0.3)
    assert picture(pipe).isfinite().all()


def test_a_batch_with_several_pictures_per_prompt():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights(make("kohya_lokr").state_dict)
    together = picture(pipe, prompt=["a cat", "a dog"], num_images_per_prompt=2)
    assert together.shape[0] == 4
    alone = picture(pipe, prompt="a cat", num_images_per_prompt=2)
    torch.testing.assert_close(together[:2], alone, atol=1e-4, rtol=1e-4)


def test_blocks_that_the_model_lacks_are_reported(caplog):
    pipe = quiet(FluxConditionedPipeline(**components(Sizes(double=1, single=1))))
    pipe.load_lora_weights(make("kohya").state_dict)
    assert "does not have 20 of the 40 layers" in caplog.text
    only = {key: value for key, value in make("kohya").state_dict.items() if "_blocks_1_" in key}
    with pytest.raises(LoRAError, match="not have any of the layers"):
        pipe.load_lora_weights(only, "none")


def test_a_control_lora_widens_the_model_and_narrower_ones_fit_then():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    before, control, plain = weights_of(pipe), make("bfl_control"), make("kohya", "everything")
    pipe.load_lora_weights(control.state_dict, "control")
    assert pipe.transformer.config.in_channels == 128
    load_lora(pipe, plain.state_dict, "style")
    assert pipe.transformer.x_embedder.lora_A["style"].weight.shape[1] == 128
    pipe.unload_lora_weights()
    assert_bit_equal(weights_of(pipe), before)
    pipe.load_lora_weights(plain.state_dict, "style")
    with pytest.raises(LoRAError, match="Load the control LoRA first"):
        pipe.load_lora_weights(control.state_dict, "control")


def test_the_model_is_narrow_again_once_no_control_lora_is_left():
    pipe, alone = tiny_pipeline(FluxConditionedPipeline), tiny_pipeline(FluxConditionedPipeline)
    before, style = weights_of(pipe), make("kohya", "everything")
    for name, seed in (("control", 0), ("other", 1)):
        load_lora(pipe, make("bfl_control", seed=seed).state_dict, name)
    for one in (pipe, alone):
        load_lora(one, style.state_dict, "style")
    pipe.delete_adapters("control")
    assert pipe.transformer.config.in_channels == 128
    pipe.delete_adapters("other")
    assert pipe.transformer.config.in_channels == pipe.transformer.x_embedder.in_features == 64
    assert torch.equal(picture(pipe), picture(alone))
    pipe.delete_adapters("style")
    assert_bit_equal(weights_of(pipe), before)


def test_what_is_no_plain_lora_is_not_saved_as_one(tmp_path):
    for format in ("kohya_lokr", "onetrainer_dora", "aitoolkit_full", "kohya"):
        pipe = tiny_pipeline(FluxConditionedPipeline)
        pipe.load_lora_weights(make(format).state_dict, "style")
        layers = get_peft_model_state_dict(pipe.transformer, adapter_name="style")
        if format == "kohya":
            pipe.save_lora_weights(tmp_path, layers)
            continue
        with pytest.raises(LoRAError, match="convert_lora"):
            pipe.save_lora_weights(tmp_path, layers)
        assert not list(tmp_path.iterdir())
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["kohya", "bfl_alpha", "onetrainer_legacy", "diffsynth_native", "kohya_lokr",
                                    "comfy_extract", "onetrainer_comfy"])  # fmt: skip
def test_stock_pipelines_load_them_too(format):
    file = make(format, "with_t5") if format == "onetrainer_comfy" else make(format)
    stock, ours = tiny_pipeline(FluxPipeline), tiny_pipeline(FluxConditionedPipeline)
    before = weights_of(stock)
    load_lora(stock, file.state_dict, "style", metadata=file.metadata)
    ours.load_lora_weights(file.state_dict, "style", metadata=file.metadata)
    assert torch.equal(picture(stock), picture(ours))
    unload_lora(stock)
    assert_bit_equal(weights_of(stock), before)


@pytest.mark.parametrize("format", ["kohya", "xlabs", "diffsynth_native", "bfl_alpha"])
def test_converted_files_load_with_diffusers_own_loader(format, tmp_path):
    file = make(format)
    stock, ours = tiny_pipeline(FluxPipeline), tiny_pipeline(FluxConditionedPipeline)
    tensors, header = convert_lora(file.state_dict, "diffusers", file.metadata)
    save_file(tensors, tmp_path / "lora.safetensors", header or None)
    stock.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    ours.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    torch.testing.assert_close(picture(stock), picture(ours), atol=1e-5, rtol=1e-5)


def test_hotswap_replaces_in_place():
    first, second = make("diffusers_peft"), make("diffusers_peft", seed=1)
    swapped, fresh = tiny_pipeline(FluxConditionedPipeline), tiny_pipeline(FluxConditionedPipeline)
    swapped.load_lora_weights(first.state_dict, "style")
    layers = dict(swapped.transformer.named_modules())
    swapped.load_lora_weights(second.state_dict, "style", hotswap=True)
    assert dict(swapped.transformer.named_modules()) == layers
    fresh.load_lora_weights(second.state_dict, "style")
    assert torch.equal(picture(swapped), picture(fresh))
    with pytest.raises(LoRAError, match="swapped in place"):
        swapped.load_lora_weights(make("kohya_lokr").state_dict, "style", hotswap=True)


def test_lora_state_dict_gives_what_diffusers_expects():
    file = make("kohya")
    tensors, alphas, metadata = FluxConditionedPipeline.lora_state_dict(
        dict(file.state_dict), return_alphas=True, return_lora_metadata=True
    )
    assert metadata is None
    assert all(isinstance(alpha, float) for alpha in alphas.values())
    stock = tiny_pipeline(FluxPipeline)
    stock.load_lora_weights({**tensors, **alphas})
    ours = tiny_pipeline(FluxConditionedPipeline)
    ours.load_lora_weights(file.state_dict)
    torch.testing.assert_close(picture(stock), picture(ours), atol=1e-5, rtol=1e-5)


def test_from_pipe_shares_the_adapters():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights(make("kohya_lokr").state_dict, "style")
    other = quiet(FluxEliGenPipeline.from_pipe(pipe))
    assert torch.equal(picture(other), picture(pipe))
    other.unload_lora_weights()
    assert not active_weights(pipe.transformer)


@pytest.mark.parametrize(
    "name, message", [("style", "already is an adapter"), ("a.b", "without a dot"), ("wide", "another size")]
)
def test_wrong_inputs_change_nothing(name, message):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    pipe.load_lora_weights(make("kohya").state_dict, "style")
    before = weights_of(pipe)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    wide = {f"{layer}.lora_A.weight": torch.ones(2, 48), f"{layer}.lora_B.weight": torch.ones(48, 2)}
    with pytest.raises(LoRAError, match=message):
        pipe.load_lora_weights(wide if name == "wide" else make("xlabs").state_dict, name)
    assert_bit_equal(weights_of(pipe), before)
    with pytest.raises(LoRAError, match="no adapters"):
        unload_lora(pipe, "unknown")
    with pytest.raises(TypeError, match="Unknown arguments"):
        pipe.load_lora_weights(make("kohya").state_dict, weight="x")
