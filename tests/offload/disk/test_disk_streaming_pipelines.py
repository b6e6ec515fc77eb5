"""Streaming from disk in pipelines: conditions, adapters, caches, other offloading, saving, moving."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, FluxPipeline, FluxTransformer2DModel, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry, ModelHook
from peft import get_peft_model_state_dict
from transformers import T5EncoderModel

from diffusers_flux_ext import (
    EntityRegions,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    ReferenceImages,
    disk_streaming_stats,
    load_lora,
    load_streamed,
    stop_disk_streaming,
    stream_from_disk,
    unload_lora,
)
from diffusers_flux_ext.testing import call_kwargs, tiny_components, tiny_pipeline


LEFT = (0.0, 0.0, 0.5, 1.0)
SHORT = {"num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a tiny transformer, in several files, and of a tiny T5."""
    folder = tmp_path_factory.mktemp("saved")
    components = tiny_components(0)
    components["transformer"].save_pretrained(folder / "transformer", max_shard_size="300KB")
    components["text_encoder_2"].save_pretrained(folder / "t5")
    return folder


@pytest.fixture
def streamed(saved):
    """A transformer that streams."""
    return load_streamed(FluxTransformer2DModel, saved / "transformer")


def draw(pipe, **overrides):
    """Latents of a short call."""
    return pipe(**call_kwargs(**{**SHORT, **overrides})).images


def lora_weights():
    """A diffusers LoRA of every attention Linear of the tiny transformer."""
    generator = torch.Generator().manual_seed(3)
    transformer = tiny_components(0)["transformer"]
    weights = {}
    for name, part in transformer.named_modules():
        if isinstance(part, torch.nn.Linear) and ".attn.to_" in name:
            down = torch.randn(2, part.in_features, generator=generator)
            weights[f"transformer.{name}.lora_A.weight"] = down
            weights[f"transformer.{name}.lora_B.weight"] = torch.randn(part.out_features, 2, generator=generator)
    return weights


@pytest.mark.parametrize("pipeline_class", [FluxPipeline, FluxConditionedPipeline, FluxEliGenPipeline])
def test_pictures_are_those_of_ordinary_modules(saved, streamed, pipeline_class):
    picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    arguments = {"negative_prompt": "x", "true_cfg_scale": 2.0}
    if pipeline_class is FluxConditionedPipeline:
        arguments["conditions"] = [ReferenceImages([picture]), EntityRegions(["a dog"], [LEFT])]
    elif pipeline_class is FluxEliGenPipeline:
        arguments |= {"entity_prompts": ["a dog"], "entity_masks": [LEFT]}
    expected = draw(tiny_pipeline(pipeline_class), **arguments)
    text_encoder = load_streamed(T5EncoderModel, saved / "t5", read_ahead=0)
    assert text_encoder.shared.weight is text_encoder.encoder.embed_tokens.weight
    pipe = tiny_pipeline(pipeline_class, transformer=streamed, text_encoder_2=text_encoder)
    assert torch.equal(draw(pipe, **arguments), expected)
    assert disk_streaming_stats(streamed).blocks_unused == 0
    assert disk_streaming_stats(text_encoder).blocks_read > 0


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("adapters_first", [False, True])
def test_loras_before_and_after(saved, ours, adapters_first):
    weights = lora_weights()

    def add(pipe):
        if ours:
            load_lora(pipe, weights, adapter_name="a")
        else:
            pipe.load_lora_weights(dict(weights), adapter_name="a")

    plain = tiny_pipeline(FluxPipeline)
    without = draw(plain)
    add(plain)
    expected = draw(plain)
    assert not torch.equal(expected, without)
    pipe = tiny_pipeline(FluxPipeline)
    if adapters_first:
        add(pipe)
    stream_from_disk(pipe.transformer, saved / "transformer")
    if not adapters_first:
        add(pipe)
    assert torch.equal(draw(pipe), expected)
    layer = pipe.transformer.transformer_blocks[0].attn.to_q
    assert layer.base_layer.weight.untyped_storage().nbytes() == 4
    assert layer.lora_A["a"].weight.device == pipe.transformer.x_embedder.weight.device
    with pytest.raises(RuntimeError, match="`fuse_lora`.*streamed from disk"):
        pipe.fuse_lora()
    unload_lora(pipe) if ours else pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), without)
    stop_disk_streaming(pipe.transformer)
    assert torch.equal(draw(pipe), without)


def test_adapters_load_while_and_stay_after_streaming(saved, tmp_path):
    pipe = tiny_pipeline(FluxPipeline)
    pipe.load_lora_weights(lora_weights(), adapter_name="a")
    expected = draw(pipe)
    stream_from_disk(pipe.transformer, offload_dir=tmp_path / "offload")
    assert torch.equal(draw(pipe), expected)
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="a")
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, weight_name="a.safetensors")
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path / "a.safetensors", adapter_name="b")
    assert torch.equal(draw(pipe), expected)
    stop_disk_streaming(pipe.transformer)
    assert torch.equal(draw(pipe), expected)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="has fused LoRAs"):
        stream_from_disk(pipe.transformer, saved / "transformer")


def test_what_needs_all_weights_is_refused(saved, streamed):
    with pytest.raises(RuntimeError, match="`fuse_qkv_projections`.*before streaming"):
        streamed.fuse_qkv_projections()
    with pytest.raises(RuntimeError, match="`enable_layerwise_casting`.*storage_dtype"):
        streamed.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="`load_state_dict` was given.*streamed from disk"):
        streamed.load_state_dict(tiny_components(1)["transformer"].state_dict())
    with pytest.raises(ValueError, match="is the folder that the module is streamed from"):
        streamed.save_pretrained(saved / "transformer")


def test_saving_writes_the_weights(saved, streamed, tmp_path):
    expected = tiny_components(0)["transformer"].state_dict()
    tiny_pipeline(FluxPipeline, transformer=streamed).save_pretrained(tmp_path)
    written = FluxTransformer2DModel.from_pretrained(tmp_path / "transformer").state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)
    text_encoder = load_streamed(T5EncoderModel, saved / "t5")
    text_encoder.save_pretrained(tmp_path / "t5")
    written = T5EncoderModel.from_pretrained(tmp_path / "t5").state_dict()
    expected = T5EncoderModel.from_pretrained(saved / "t5").state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)


@pytest.mark.parametrize("cache_first", [False, True])
@pytest.mark.parametrize("kind", ["first block", "attention"])
def test_caches_before_and_after(saved, cache_first, kind):
    steps = {"num_inference_steps": 4}
    pipe = tiny_pipeline(FluxPipeline)
    step = {"pipe": pipe}
    config = (
        FirstBlockCacheConfig(threshold=1e9)
        if kind == "first block"
        else PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 2000),
            current_timestep_callback=lambda: step["pipe"]._current_timestep,
        )
    )
    plain = draw(pipe, **steps)
    pipe.transformer.enable_cache(config)
    expected = draw(pipe, **steps)
    pipe.transformer.disable_cache()
    assert not torch.equal(plain, expected)
    if cache_first:
        pipe.transformer.enable_cache(config)
    stream_from_disk(pipe.transformer, saved / "transformer")
    if not cache_first:
        pipe.transformer.enable_cache(config)
    assert torch.equal(draw(pipe, **steps), expected)
    if kind == "first block":
        # All five blocks once, and then the first one, which is still there.
        assert disk_streaming_stats(pipe.transformer).blocks_read <= 5 + 2
    stop_disk_streaming(pipe.transformer)
    assert torch.equal(draw(pipe, **steps), expected)
    pipe.transformer.disable_cache()
    assert torch.equal(draw(pipe, **steps), plain)


def test_stopping_leaves_hooks_above_alive(saved):
    class Doubled(ModelHook):
        def new_forward(self, module, *args, **kwargs):
            return 2 * self.fn_ref.original_forward(*args, **kwargs)

    transformer = load_streamed(FluxTransformer2DModel, saved / "transformer")
    layer = transformer.transformer_blocks[0].ff.net[2]
    HookRegistry.check_if_exists_or_initialize(layer).register_hook(Doubled(), "doubled")
    x = torch.randn(1, layer.in_features)
    with torch.no_grad():
        expected = layer(x)
        stop_disk_streaming(transformer)
        assert torch.equal(layer(x), expected)
        stream_from_disk(transformer, saved / "transformer")
        assert torch.equal(layer(x), expected)


def test_casting_and_moving(saved, streamed):
    pipe = tiny_pipeline(FluxPipeline).to(torch.bfloat16)
    expected = draw(pipe)
    assert torch.isfinite(expected.float()).all()
    pipe.transformer = streamed
    assert torch.equal(draw(pipe.to(torch.bfloat16)), expected)
    assert streamed.transformer_blocks[0].attn.to_q.weight.dtype == torch.bfloat16
    assert torch.equal(draw(pipe.to("cpu")), expected)
    converted = FluxConditionedPipeline.from_pipe(pipe)
    converted.set_progress_bar_config(disable=True)
    assert torch.equal(draw(converted), expected)
    stop_disk_streaming(streamed)
    assert {parameter.dtype for parameter in streamed.parameters()} == {torch.bfloat16}
    assert torch.equal(draw(pipe), expected)


def test_group_offloading_may_follow_but_not_lead(saved, streamed):
    pipe = tiny_pipeline(FluxPipeline)
    expected = draw(pipe)
    offload = {"offload_type": "block_level", "num_blocks_per_group": 1}
    pipe.transformer.enable_group_offload(torch.device("cpu"), **offload)
    with pytest.raises(ValueError, match="is group offloaded"):
        stream_from_disk(pipe.transformer, saved / "transformer")
    pipe.transformer = streamed
    streamed.enable_group_offload(torch.device("cpu"), **offload)
    assert torch.equal(draw(pipe), expected)
    stop_disk_streaming(streamed)
    assert torch.equal(draw(pipe), expected)


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_streamed(FluxTransformer2DModel, tmp_path / "nothing")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")
@pytest.mark.parametrize("read_ahead", [0, 1, 3])
@pytest.mark.parametrize("ram_budget_gib", [None, 0.0005, 1.0])
def test_blocks_compute_on_the_device(saved, read_ahead, ram_budget_gib):
    pipe = tiny_pipeline(FluxPipeline).to("cuda")
    expected = draw(pipe, num_inference_steps=6)
    pipe.transformer = load_streamed(
        FluxTransformer2DModel,
        saved / "transformer",
        onload_device="cuda",
        read_ahead=read_ahead,
        ram_budget_gib=ram_budget_gib,
    )
    for _ in range(3):
        assert torch.equal(draw(pipe, num_inference_steps=6), expected)
    pipe.transformer.to("cpu")
    pipe.enable_model_cpu_offload()
    assert torch.equal(draw(pipe, num_inference_steps=6), expected)
