"""A VRAM budget over models that are streamed from disk: places, images, LoRAs, memory, saving."""

import pytest
import torch
from diffusers import FluxControlNetModel, FluxPipeline, FluxTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig
from transformers import T5EncoderModel

from benchmarks.support.tiny.controlnet import PICTURE, tiny_controlnet
from diffusers_flux_ext import (
    ControlNetImage,
    FluxConditionedPipeline,
    TeaCacheConfig,
    VRAMBudgetError,
    apply_tea_cache,
    apply_vram_plan,
    disable_vram_budget,
    disk_streaming_stats,
    load_streamed,
    plan_vram,
    stop_disk_streaming,
)
from diffusers_flux_ext.offload.disk.stream import DiskStream, stream_of
from diffusers_flux_ext.testing import quiet, tiny_components, tiny_pipeline, tiny_transformer
from tests.fixtures.vram import BUDGETS, GIB, SIZES, WIDE, budget, draw


pytestmark = pytest.mark.usefixtures("tiny_vram_numbers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_transformer(**WIDE).save_pretrained(folder / "transformer", max_shard_size="1MB")
    tiny_components(0)["text_encoder_2"].save_pretrained(folder / "t5")
    tiny_controlnet(5, "union").save_pretrained(folder / "controlnet")
    return folder


def streamed(saved, pipeline_class=FluxConditionedPipeline, **kwargs):
    transformer = load_streamed(FluxTransformer2DModel, saved / "transformer", **kwargs)
    return tiny_pipeline(pipeline_class, transformer=transformer)


def reads_per_call(pipe, **kwargs):
    before = disk_streaming_stats(pipe.transformer).blocks_read
    draw(pipe, **kwargs)
    return disk_streaming_stats(pipe.transformer).blocks_read - before


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("name", ["one", "streamed", "partly", "whole"])
@pytest.mark.parametrize("pipeline_class", [FluxConditionedPipeline, FluxPipeline])
def test_images_do_not_change(saved, monkeypatch, expected, name, pipeline_class, staged):
    if staged:
        monkeypatch.setattr(DiskStream, "_staged", True)
    pipe = streamed(saved, pipeline_class)
    pipe.text_encoder_2 = load_streamed(T5EncoderModel, saved / "t5")
    found = budget(pipe, name)
    plan = found.plan.component("transformer")
    assert plan.level == ("whole" if name == "whole" else "blocks")
    assert bool(plan.resident) == (name in ("partly", "whole"))
    for _ in range(2):
        assert torch.equal(draw(pipe), expected)
    disable_vram_budget(pipe)
    assert torch.equal(draw(pipe), expected)
    assert stream_of(pipe.transformer) is not None


def test_sizes_are_counted_as_those_of_weights_in_memory(saved):
    plans = [plan_vram(pipe, 1, **SIZES).component("transformer") for pipe in (streamed(saved), tiny_like())]
    # Small weights between the matrices are read over.
    assert plans[0].total == pytest.approx(plans[1].total, rel=0.02)
    assert plans[0].activations == plans[1].activations


def tiny_like():
    return tiny_pipeline(FluxConditionedPipeline, transformer=tiny_transformer(**WIDE))


def test_blocks_that_stay_are_read_once_in_a_call(saved):
    pipe = streamed(saved)
    plan = budget(pipe).plan.component("transformer")
    assert plan.resident
    draw(pipe, num_inference_steps=1)
    reads = reads_per_call(pipe, num_inference_steps=3)
    # One may be read ahead for a step that does not come; those that leave for another phase are read again.
    assert 0 <= reads - 3 * len(plan.streamed) <= len(plan.resident) + 1


@pytest.mark.parametrize("staged", [False, True])
def test_blocks_that_host_memory_has_room_for_are_read_once(saved, tmp_path, monkeypatch, expected, staged):
    if staged:
        monkeypatch.setattr(DiskStream, "_staged", True)
    pipe = streamed(saved)
    plan = budget(pipe, "streamed", ram_budget_gib=20e6 / GIB, offload_dir=tmp_path).plan.component("transformer")
    assert not plan.on_disk
    assert torch.equal(draw(pipe), expected)
    assert reads_per_call(pipe) == 0
    plan = budget(pipe, "streamed", ram_budget_gib=3.2e6 / GIB, offload_dir=tmp_path).plan.component("transformer")
    assert 0 < len(plan.on_disk) < len(plan.streamed)
    for _ in range(2):
        assert torch.equal(draw(pipe), expected)
    # One may come for a call that does not, and one more to host memory.
    assert len(plan.on_disk) - 1 <= reads_per_call(pipe) <= len(plan.on_disk) + 2
    # The model's own files serve, and nothing is written for it.
    assert not (tmp_path / "transformer").exists()


def test_what_is_on_the_card_is_what_the_plan_counts(saved, monkeypatch):
    monkeypatch.setattr(DiskStream, "_staged", True)
    pipe = streamed(saved)
    found = budget(pipe)
    plan, stream, seen = found.plan.component("transformer"), stream_of(pipe.transformer), []
    install = DiskStream._install

    def spy(self, index, data, slot):
        install(self, index, data, slot)
        slots = [*self._free, *(each.slot for each in self._pending.values()), self._slot]
        window = sum(slot.buffer.nbytes for slot in slots if slot is not None)
        resident = {block.name: block.on_device.nbytes for block in self.blocks if block.on_device is not None}
        seen.append((window, resident))

    monkeypatch.setattr(DiskStream, "_install", spy)
    draw(pipe)
    assert max(window for window, _ in seen) <= plan.window
    assert seen[-1][1] == plan.resident
    # Decoding needs no more than what the plan lets stay beside it.
    keeps = {name for owner, name in found.plan.phase("vae").keeps if owner == "transformer" and name}
    assert {block.name for block in stream.blocks if block.on_device is not None} == keeps
    assert stream._loader is None


@pytest.mark.parametrize("pipeline_class", [FluxConditionedPipeline, FluxPipeline])
def test_loras_come_and_go(saved, expected, pipeline_class):
    plain = tiny_pipeline(pipeline_class, transformer=tiny_transformer(**WIDE))
    plain.load_lora_weights(lora(), adapter_name="a")
    with_lora = draw(plain)
    assert not torch.equal(with_lora, expected)
    pipe = streamed(saved, pipeline_class)
    found = budget(pipe)
    total = found.plan.component("transformer").total
    pipe.load_lora_weights(lora(), adapter_name="a")
    assert torch.equal(draw(pipe), with_lora)
    assert found.plan.component("transformer").total == total + 4 * 64 * 4
    with pytest.raises((RuntimeError, ValueError), match="disk|fused"):
        pipe.fuse_lora()
    assert torch.equal(draw(pipe), with_lora)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), expected)
    assert found.plan.component("transformer").total == total


def lora():
    generator = torch.Generator().manual_seed(0)
    key = "transformer.single_transformer_blocks.1.attn.to_q"
    down, up = (torch.randn(*shape, generator=generator) for shape in ((2, 64), (64, 2)))
    return {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}


def test_weights_that_the_budget_wrote_can_be_fused(tmp_path, expected):
    plain, pipe = tiny_like(), tiny_like()
    found = budget(pipe, ram_budget_gib=3e6 / GIB, offload_dir=tmp_path)
    for each in (plain, pipe):
        each.load_lora_weights(lora(), adapter_name="a")
        each.fuse_lora()
    assert found.plan.component("transformer").on_disk
    torch.testing.assert_close(draw(pipe), draw(plain), atol=1e-5, rtol=0)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), expected, atol=1e-5, rtol=0)
    disable_vram_budget(pipe)
    assert stream_of(pipe.transformer) is None
    assert all(not parameter.is_meta for parameter in pipe.transformer.parameters())


def test_a_larger_call_is_planned_again(saved):
    pipe, large = streamed(saved), {"height": 64, "width": 64, "num_images_per_prompt": 2}
    wanted = draw(tiny_like(), **large)
    found = budget(pipe, "whole")
    before = stream_of(pipe.transformer)
    assert torch.equal(draw(pipe, **large), wanted)
    assert found.plan.workload.image_tokens == 16
    # The same stream goes on: no file is read through or written again.
    assert stream_of(pipe.transformer) is before
    stop_disk_streaming(pipe.transformer)
    assert not found.plan.component("transformer").from_disk
    assert torch.equal(draw(pipe, **large), wanted)


def test_a_data_type_is_taken_on(saved):
    pipe, plain = streamed(saved), tiny_like().to(torch.bfloat16)
    budget(pipe)
    pipe.to(torch.bfloat16)
    assert torch.equal(draw(pipe), draw(plain))


def test_a_controlnet_takes_turns_with_the_transformer(saved):
    wide = {"num_layers": 2, "num_single_layers": 2}
    transformer = tiny_transformer(**wide)
    condition = ControlNetImage(tiny_controlnet(5, "union"), PICTURE, mode="canny")
    plain = tiny_pipeline(FluxConditionedPipeline, transformer=transformer)
    wanted = draw(plain, conditions=[condition], num_inference_steps=2)
    net = load_streamed(FluxControlNetModel, saved / "controlnet")
    condition = ControlNetImage(net, PICTURE, mode="canny")
    found = budget(plain, "one", conditions=[condition])
    assert found.plan.component("ControlNetImage.controlnet").from_disk
    assert torch.equal(draw(plain, conditions=[condition], num_inference_steps=2), wanted)
    disable_vram_budget(plain)
    assert torch.equal(draw(plain, conditions=[condition], num_inference_steps=2), wanted)


def test_saving_writes_the_weights(saved, tmp_path):
    pipe = streamed(saved)
    budget(pipe)
    draw(pipe)
    with pytest.raises(ValueError, match="is the folder that the module is streamed from"):
        pipe.transformer.save_pretrained(saved / "transformer")
    pipe.transformer.save_pretrained(tmp_path)
    written, wanted = (FluxTransformer2DModel.from_pretrained(each) for each in (tmp_path, saved / "transformer"))
    wanted = wanted.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in written.state_dict().items())


@pytest.mark.parametrize("cache_first", [True, False])
@pytest.mark.parametrize("kind", ["first block", "tea"])
def test_blocks_that_a_cache_skips_are_not_read(saved, kind, cache_first):
    plain, pipe = tiny_like(), streamed(saved)
    caches = {
        "first block": lambda each: each.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9)),
        "tea": lambda each: apply_tea_cache(each.transformer, TeaCacheConfig(1e9)),
    }
    caches[kind](plain)
    if cache_first:
        caches[kind](pipe)
    budget(pipe, "streamed")
    if not cache_first:
        caches[kind](pipe)
    before = disk_streaming_stats(pipe.transformer).blocks_read
    assert torch.equal(draw(pipe, num_inference_steps=3), draw(plain, num_inference_steps=3))
    # TeaCache computes the first and the last step.
    whole = 1 if kind == "first block" else 2
    assert disk_streaming_stats(pipe.transformer).blocks_read - before <= 10 * whole + 2 * 3


def test_eight_bits_are_those_of_the_file(saved, tmp_path):
    options = {"storage_dtype": torch.float8_e4m3fn, "offload_dir": tmp_path}
    pipe = streamed(saved, compute_dtype=torch.float32, **options)
    wanted = draw(pipe)
    found = budget(pipe, "one", storage_dtype={"transformer": torch.float8_e4m3fn})
    assert found.plan.component("transformer").level == "blocks"
    for _ in range(2):
        assert torch.equal(draw(pipe), wanted)
    with pytest.raises(ValueError, match="'transformer' is streamed from disk as it is stored.*load_streamed"):
        plan_vram(streamed(saved), 1, storage_dtype=torch.float8_e4m3fn, **SIZES)


def test_eight_bits_written_for_a_budget(tmp_path):
    pipe, options = tiny_like(), {"storage_dtype": torch.float8_e4m3fn}
    apply_vram_plan(pipe, plan_vram(pipe, BUDGETS["partly"] / GIB, **SIZES, **options), "cpu")
    wanted = draw(pipe)
    pipe = tiny_like()
    found = budget(pipe, "one", ram_budget_gib=1.35e6 / GIB, offload_dir=tmp_path, **options)
    assert found.plan.component("transformer").on_disk
    torch.testing.assert_close(draw(pipe), wanted, atol=1e-5, rtol=0)
    disable_vram_budget(pipe)
    assert pipe.transformer.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(draw(pipe), wanted, atol=1e-5, rtol=0)


def test_the_smallest_budget_holds_a_block_and_what_is_outside(saved):
    models = {"transformer": streamed(saved).transformer}
    with pytest.raises(VRAMBudgetError, match="the smallest that works") as error:
        plan_vram(models, 4e5 / GIB, **SIZES)
    # The message rounds up to hundredths of a GiB, which are coarse for a tiny model.
    assert plan_vram(models, error.value.smallest_gib, **SIZES).peak_gib <= error.value.smallest_gib
    sizes = plan_vram(models, 1, **SIZES).component("transformer")
    least = sizes.rest + max(sizes.resident.values()) + sizes.activations
    assert plan_vram(models, least * 1.03 / GIB, **SIZES).component("transformer").window == max(
        sizes.resident.values()
    )


def test_from_pipe_shares_the_budget(saved, expected):
    pipe = streamed(saved)
    budget(pipe)
    other = quiet(FluxConditionedPipeline.from_pipe(pipe))
    assert torch.equal(draw(other), expected)
    other.load_lora_weights(lora(), adapter_name="a")
    other.unload_lora_weights()
    assert torch.equal(draw(pipe), expected)
