"""What only an accelerator can show."""

import pytest
import torch

from diffusers_flux_ext import (
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    TeaCacheConfig,
    apply_tea_cache,
    memory_report,
    plan_vram,
)
from diffusers_flux_ext.offload.budget import placement as vram_placement
from diffusers_flux_ext.offload.budget import planner as vram
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer
from diffusers_flux_ext.training import FluxTraining
from diffusers_flux_ext.training.checkpointing import checkpoint_blocks
from diffusers_flux_ext.training.frozen import store_frozen
from diffusers_flux_ext.training.streaming import stream_blocks
from diffusers_flux_ext.training.trained import LoRAOptions, add_lora
from tests.training.samples import batch


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]
ENTITIES = {"entity_prompts": ["a red dog", "a bird"], "entity_masks": [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]}


@pytest.mark.parametrize("place", ["cuda", "model offload", "group offload"])
@pytest.mark.parametrize("force_classes", [False, True])
def test_entities_on_the_device_equal_the_cpu(monkeypatch, place, force_classes):
    if force_classes:
        monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: False)
    latents = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    expected = tiny_pipeline(FluxEliGenPipeline)(**call_kwargs(**ENTITIES, latents=latents)).images
    pipe = tiny_pipeline(FluxEliGenPipeline)
    if place == "model offload":
        pipe.enable_model_cpu_offload()
    elif place == "group offload":
        pipe.to("cuda")
        pipe.transformer.enable_group_offload(
            torch.device("cuda"), offload_type="block_level", num_blocks_per_group=1, use_stream=True
        )
    else:
        pipe.to("cuda")
    actual = pipe(**call_kwargs(**ENTITIES, latents=latents)).images.cpu()
    torch.testing.assert_close(actual, expected, atol=5e-3, rtol=0)


def test_a_flash_kernel_runs_entities_in_bfloat16():
    pipe = tiny_pipeline(FluxEliGenPipeline).to("cuda", torch.bfloat16)
    pipe.transformer.set_attention_backend("_native_flash")
    try:
        images = pipe(**call_kwargs(**ENTITIES)).images
    finally:
        pipe.transformer.set_attention_backend("native")
    assert torch.isfinite(images.float()).all()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 2.0])
def test_a_budget_streams_and_is_kept(monkeypatch, share):
    monkeypatch.setattr(vram, "MARGIN_BYTES", 0)
    monkeypatch.setattr(vram_placement, "SMALL", 2**14)
    sizes = {"height": 32, "width": 48, "max_sequence_length": 16}
    wide = {"num_layers": 4, "num_single_layers": 6, "num_attention_heads": 16}
    latents = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    pipe = tiny_pipeline(FluxEliGenPipeline, transformer=tiny_transformer(**wide))
    expected = pipe(**call_kwargs(latents=latents)).images
    whole = sum(each.total for each in plan_vram(pipe, 1, **sizes).components) / 2**30
    plan = pipe.enable_vram_budget(whole * share, "cuda", **sizes)
    for _ in range(2):
        actual = pipe(**call_kwargs(latents=latents)).images.cpu()
        torch.testing.assert_close(actual, expected, atol=5e-3, rtol=0)
    report = memory_report(pipe)
    assert set(report.measured) == {phase.name for phase in plan.phases}
    # Tensors of a few hundred bytes take 512, and kernels have scratch memory, which weighs something at this size.
    assert report.measured["loop"] <= plan.budget_gib + 0.05


@pytest.mark.parametrize("cache_first", [True, False])
@pytest.mark.parametrize("stream", [None, False, True], ids=["resident", "offloaded", "with a stream"])
def test_tea_cache_on_the_device_equals_the_cpu(stream, cache_first):
    latents = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    arguments = {"latents": latents, "num_inference_steps": 6, "negative_prompt": "ugly", "true_cfg_scale": 2.0}
    expected = tiny_pipeline(FluxConditionedPipeline)
    apply_tea_cache(expected.transformer, TeaCacheConfig(1e9))
    pipe = tiny_pipeline(FluxConditionedPipeline).to("cuda")
    if cache_first:
        apply_tea_cache(pipe.transformer, TeaCacheConfig(1e9))
    if stream is not None:
        pipe.transformer.enable_group_offload(
            torch.device("cuda"), offload_type="block_level", num_blocks_per_group=1, use_stream=stream
        )
    if not cache_first:
        apply_tea_cache(pipe.transformer, TeaCacheConfig(1e9))
    wanted = expected(**call_kwargs(**arguments)).images
    for _ in range(2):
        actual = pipe(**call_kwargs(**arguments)).images.cpu()
        torch.testing.assert_close(actual, wanted, atol=5e-3, rtol=0)


def test_the_plain_loop_does_not_synchronise():
    pipe = tiny_pipeline(FluxConditionedPipeline).to("cuda")

    def watch(pipe, index, timestep, tensors):
        torch.cuda.set_sync_debug_mode("error" if index < 3 else "default")
        return {}

    try:
        images = pipe(**call_kwargs(num_inference_steps=4, callback_on_step_end=watch)).images
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("storage", [None, "fp8"])
def test_streamed_training_is_that_of_the_device_with_less_memory(storage, tmp_path):
    found = {}
    for name, resident, folder, offload in (
        ("whole", None, None, False),
        ("memory", 0, None, True),
        ("disk", 0, tmp_path, False),
    ):
        found[name] = _train_steps(storage, resident, folder, offload)
    for name in ("memory", "disk"):
        assert found[name][1] < found["whole"][1]
        for one, other in zip(found[name][0], found["whole"][0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def _train_steps(storage, resident, folder, offload):
    """Losses and gradients of three steps on a base whose blocks are most of it, and the peak."""
    device = torch.device("cuda")
    transformer = tiny_transformer(0, num_layers=8, num_single_layers=8, num_attention_heads=16).requires_grad_(False)
    if storage is not None:
        store_frozen(transformer, storage)
    lora = add_lora(transformer, LoRAOptions("attention", rank=2)).named_parameters().values()
    checkpoint_blocks(transformer, 1, offload)
    if resident is None:
        transformer.to(device)
    else:
        stream_blocks(transformer, device, resident, folder)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    steps = []
    with FluxTraining(transformer) as training:
        training.train()
        for step in range(3):
            losses = training(batch([], seed=step).to(device))
            losses.sum().backward()
            steps += [losses.detach().cpu(), *(parameter.grad.cpu() for parameter in lora)]
            for parameter in lora:
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
    return steps, torch.cuda.max_memory_allocated()
