"""What people do with a transformer besides calling it, set up on a pipeline and taken away again."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig

from benchmarks.support.lora_files import make
from benchmarks.support.tiny.lora_fusion import small_lora, tiny_fusion
from benchmarks.support.tiny.timestep_lora import tiny_timestep_lora
from diffusers_flux_ext import (
    TeaCacheConfig,
    apply_vram_plan,
    disable_lora_fusion,
    disable_vram_budget,
    enable_lora_fusion,
    load_timestep_lora,
    plan_vram,
    stop_disk_streaming,
    stream_from_disk,
)


# A control LoRA widens the transformer for what a condition adds.
CONTROL = "control LoRA"
COMPILED = "compiled blocks"
CALL: dict[str, Any] = {"height": 32, "width": 48, "batch": 2, "max_sequence_length": 16}


def _lora(format: str) -> Callable[[Any], AbstractContextManager[None]]:
    @contextmanager
    def use(pipe: Any) -> Iterator[None]:
        file = make(format)
        pipe.load_lora_weights(file.state_dict, "one", metadata=file.metadata)
        try:
            yield
        finally:
            pipe.unload_lora_weights()

    return use


@contextmanager
def _timestep_lora(pipe: Any) -> Iterator[None]:
    load_timestep_lora(pipe, tiny_timestep_lora())
    try:
        yield
    finally:
        pipe.unload_lora_weights()


@contextmanager
def _fusion(pipe: Any) -> Iterator[None]:
    pipe.load_lora_weights(small_lora(0), "one")
    pipe.load_lora_weights(small_lora(1), "two")
    pipe.set_adapters(["one", "two"])
    enable_lora_fusion(pipe.transformer, tiny_fusion())
    try:
        yield
    finally:
        disable_lora_fusion(pipe.transformer)
        pipe.unload_lora_weights()


@contextmanager
def _fused(pipe: Any) -> Iterator[None]:
    with _lora("diffusers_peft")(pipe):
        pipe.fuse_lora()
        try:
            yield
        finally:
            pipe.unfuse_lora()


@contextmanager
def _fused_qkv(pipe: Any) -> Iterator[None]:
    pipe.transformer.fuse_qkv_projections()
    try:
        yield
    finally:
        pipe.transformer.unfuse_qkv_projections()


def _group(**arguments: Any) -> Callable[[Any], AbstractContextManager[None]]:
    @contextmanager
    def use(pipe: Any) -> Iterator[None]:
        from diffusers_flux_ext._compat import remove_group_offloading

        pipe.transformer.enable_group_offload(torch.device("cpu"), torch.device("cpu"), **arguments)
        try:
            yield
        finally:
            remove_group_offloading(pipe.transformer)

    return use


def _budget(gib: float | None = None, lora: bool = False, **arguments: Any) -> Callable[..., Any]:
    @contextmanager
    def use(pipe: Any) -> Iterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            if "ram_budget_gib" in arguments:
                arguments["offload_dir"] = folder
            plan = plan_vram(pipe, gib or 8, **CALL, **arguments)
            apply_vram_plan(pipe, plan, "cpu")
            try:
                with _lora("diffusers_peft")(pipe) if lora else nullcontext():
                    yield
            finally:
                disable_vram_budget(pipe)

    return use


@contextmanager
def streamed(model: Any) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        stream_from_disk(model, offload_dir=folder)
        try:
            yield
        finally:
            stop_disk_streaming(model)


def _cache(config: Any) -> Callable[[Any], AbstractContextManager[None]]:
    @contextmanager
    def use(pipe: Any) -> Iterator[None]:
        pipe.transformer.enable_cache(config())
        try:
            yield
        finally:
            pipe.transformer.disable_cache()

    return use


@contextmanager
def _casting(pipe: Any) -> Iterator[None]:
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    yield


@contextmanager
def _compiled(pipe: Any) -> Iterator[None]:
    # Traced as for a compiler, and run as it is. diffusers' layer for GGUF cannot be traced as one graph.
    pipe.transformer.compile_repeated_blocks(backend="aot_eager")
    try:
        yield
    finally:
        for block in pipe.transformer.modules():
            block._compiled_call_impl = None
        torch.compiler.reset()


@contextmanager
def _plain(pipe: Any) -> Iterator[None]:
    yield


# Those that concern text encoders.
TEXT_USES = ("nothing else", "VRAM budget, all on the card", "VRAM budget, blocks", "`stream_from_disk`")
USES: dict[str, Callable[[Any], AbstractContextManager[None]]] = {
    "nothing else": _plain,
    "LoRA": _lora("diffusers_peft"),
    "LoRA with biases": _lora("diffusers_peft_bias"),
    "LoKr": _lora("kohya_lokr"),
    "LoHa": _lora("kohya_loha"),
    "DoRA, by row": _lora("onetrainer_dora"),
    "DoRA, by column": _lora("kohya_dora"),
    "dense deltas": _lora("aitoolkit_full"),
    CONTROL: _lora("bfl_control"),
    "timestep LoRA": _timestep_lora,
    "LoRA-Fusion": _fusion,
    "`fuse_lora`": _fused,
    "`fuse_qkv_projections`": _fused_qkv,
    "group offload, blocks": _group(offload_type="block_level", num_blocks_per_group=1),
    "group offload, leaves": _group(offload_type="leaf_level"),
    "VRAM budget, all on the card": _budget(),
    "VRAM budget, blocks": _budget(0.0662),
    "VRAM budget, LoRA": _budget(0.0662, lora=True),
    "VRAM budget, fp8 storage": _budget(storage_dtype=torch.float8_e4m3fn),
    "VRAM budget, RAM budget": _budget(ram_budget_gib=1),
    "`stream_from_disk`": lambda pipe: streamed(pipe.transformer),
    "`enable_layerwise_casting`": _casting,
    "FirstBlockCache": _cache(lambda: FirstBlockCacheConfig(threshold=0.5)),
    COMPILED: _compiled,
    "TeaCache": _cache(lambda: TeaCacheConfig(0.5)),
}
