"""Files that must be refused, each with a word that the refusal has to contain, and one harmless pickle."""

import io
import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from benchmarks.support.lora_files.build import make


RANK = 4


def _tensor(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _pair(
    name: str, rows: int, columns: int, down: str = "lora_A.weight", up: str = "lora_B.weight"
) -> dict[str, Tensor]:
    return {f"{name}.{down}": _tensor(RANK, columns), f"{name}.{up}": _tensor(rows, RANK)}


def _kohya(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {**_pair(name, rows, columns, "lora_down.weight", "lora_up.weight"), f"{name}.alpha": torch.tensor(4.0)}


def _default() -> dict[str, Tensor]:
    return dict(make("diffusers_peft").state_dict)


KEY = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
UP = KEY.replace("lora_A", "lora_B")


def _changed(key: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    tensors = _default()
    tensors[key] = change(tensors[key])
    return tensors


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    def fill(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return fill


class Forbidden:
    """A pickle of this class would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("true",)


def _pickle(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def containers() -> Iterator[tuple[str, bytes, str]]:
    """Files that are no readable safetensors file or no safe pickle."""
    whole = save(_default())
    length = struct.unpack("<Q", whole[:8])[0]
    names = json.loads(whole[8 : 8 + length])
    first = next(name for name in names if name != "__metadata__")
    names[first]["data_offsets"][1] += 4
    header = json.dumps(names).encode()
    yield "empty.safetensors", b"", "empty"
    yield "truncated.safetensors", whole[: len(whole) // 2], "truncated"
    yield "truncated_in_header.safetensors", whole[:100], "truncated"
    yield "truncated_in_length.safetensors", whole[:5], "truncated"
    yield "header_too_long.safetensors", struct.pack("<Q", 1 << 60) + whole[8:], "header"
    yield "header_too_short.safetensors", struct.pack("<Q", length - 7) + whole[8:], "header"
    yield "header_no_json.safetensors", struct.pack("<Q", 16) + b"\x00" * 64, "header"
    yield "header_wrong_offsets.safetensors", struct.pack("<Q", len(header)) + header + whole[8 + length :], "header"
    yield "page.safetensors", b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n", "HTML"
    yield "pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "LFS"
    yield "pickle_as.safetensors", _pickle(_default()), "pickle"
    yield "forbidden.pt", _pickle({KEY: Forbidden()}), "pickle"
    yield "forbidden_beside_tensors.bin", _pickle({**_default(), "x": Forbidden()}), "pickle"
    yield "list.pt", _pickle([1, 2, 3]), "state dict"
    yield "noise.pt", bytes(range(256)) * 4, "pickle"


def contents() -> Iterator[tuple[str, dict[str, Tensor], str]]:
    """Readable files whose tensors make no sense."""
    yield "nan", _changed(KEY, _filled(float("nan"))), "NaN"
    yield "infinite", _changed(UP, _filled(float("inf"))), "inf"
    yield "ranks_differ", _changed(KEY, lambda tensor: tensor[:-1].contiguous()), "shape"
    yield "wrong_rows", _changed(UP, lambda tensor: torch.cat([tensor, tensor])), "shape"
    yield "wrong_columns", _changed(KEY, lambda tensor: torch.cat([tensor, tensor], dim=1)), "shape"
    yield "one_dimension", _changed(KEY, lambda tensor: tensor[0].contiguous()), "shape"
    yield "no_up", {key: value for key, value in _default().items() if key != UP}, "pair"
    yield "no_down", {key: value for key, value in _default().items() if key != KEY}, "pair"
    named = {key.replace(".weight", ".first.weight"): value for key, value in _default().items()}
    second = {key.replace(".weight", ".second.weight"): value for key, value in _default().items()}
    yield "two_adapters", {**named, **second}, "adapter names"
    other = _pair("transformer.transformer_blocks.0.attn.to_z", 32, 32)
    yield "unknown_module", {**_default(), **other}, "to_z"
    yield "unknown_suffix", {**_default(), KEY.replace("lora_A.weight", "lora_Q.weight"): _tensor(4, 32)}, "lora_Q"
    twice = _kohya("lora_unet_transformer_blocks_0_attn_to_q", 32, 32)
    yield "one_module_twice", {**_default(), **twice}, "to_q"
    yield "no_adapter", {"position_ids": _tensor(1, 77)}, "LoRA"
    yield "whole_checkpoint", {"transformer_blocks.0.attn.to_q.weight": _tensor(32, 32)}, "checkpoint"
    fused = make("kohya_dora").state_dict
    rows = {key: value for key, value in fused.items() if "img_attn_qkv" in key}
    rows["lora_unet_double_blocks_0_img_attn_qkv.dora_scale"] = _tensor(1, 32).abs()
    yield "inputs_magnitude_of_fused_layer", {key: rows[key] for key in rows if "_blocks_0_" in key}, "base"
    yield (
        "several_modules_at_once",
        {"transformer.transformer_blocks.lora_A.weight": _tensor(4, 32)},
        "transformer_blocks",
    )


def families() -> Iterator[tuple[str, dict[str, Tensor], str]]:
    """Adapters of other models, and of FLUX.1 but with another meaning."""
    yield "flux2", _pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 288, 32), "FLUX.2"
    yield "flux2_modulation", _pair("diffusion_model.double_stream_modulation_img.lin", 192, 32), "FLUX.2"
    yield "flux2_feed_forward", _pair("transformer.transformer_blocks.0.ff.linear_in", 192, 32), "FLUX.2"
    yield "chroma", _pair("diffusion_model.distilled_guidance_layer.layers.0.in_layer", 32, 32), "Chroma"
    sdxl = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k"
    yield "sdxl_kohya", _kohya(sdxl, 64, 64), "SD"
    yield "sdxl_diffusers", _pair("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k", 64, 64), "SD"
    yield "wan", _pair("diffusion_model.blocks.0.self_attn.q", 64, 64), "Wan"
    yield (
        "wan_native",
        _pair("blocks.0.cross_attn.k_img", 64, 64, "lora_A.default.weight", "lora_B.default.weight"),
        "Wan",
    )
    yield "qwen_image", _pair("transformer.transformer_blocks.0.img_mlp.net.0.proj", 128, 32), "Qwen-Image"
    yield "qwen_image_modulation", _pair("transformer_blocks.0.img_mod.1", 192, 32), "Qwen-Image"
    yield "sd3", _pair("transformer.transformer_blocks.0.attn2.to_q", 32, 32), "SD3"
    yield "sd3_kohya", _kohya("lora_unet_joint_blocks_0_x_block_attn_qkv", 96, 32), "SD3"
    blocks = {"oft_unet_double_blocks_0_img_attn_qkv.oft_blocks": _tensor(4, 8, 8)}
    yield "oft", {**blocks, "oft_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(1.0)}, "OFT"
    processor = "transformer_blocks.0.attn.processor.q_loras.0"
    yield "easy_control", _pair(processor, 32, 32, "down.weight", "up.weight"), "EasyControl"
    packed = ("transformer_blocks.0.mlp_fc1", "transformer_blocks.0.qkv_proj", "transformer_blocks.0.mlp_context_fc1")
    yield (
        "nunchaku",
        {k: v for name in packed for k, v in _pair(name, 96, 32, "lora_down", "lora_up").items()},
        "nunchaku",
    )
    layer = "base_model.model.transformer_blocks.0.attn.to_q"
    times = {f"{layer}.lora_time_{name}.weight": _tensor(RANK, 256) for name in ("gamma", "beta")}
    times.update({f"{layer}.lora_time_{name}.bias": _tensor(RANK) for name in ("gamma", "beta")})
    yield "timestep", {**_pair(layer, 32, 32), **times}, "timestep"
    rescale = {"lora_unet_double_blocks_0_img_attn_proj.oft_blocks": _tensor(4, 8, 8)}
    yield "oft_lycoris", {**rescale, "lora_unet_double_blocks_0_img_attn_proj.rescale": _tensor(32, 1)}, "OFT"
    glora = {f"lora_unet_double_blocks_0_img_attn_proj.{name}.weight": _tensor(4, 32) for name in ("a1", "b1")}
    glora.update({f"lora_unet_double_blocks_0_img_attn_proj.{name}.weight": _tensor(32, 4) for name in ("a2", "b2")})
    yield "glora", glora, "GLoRA"
    layers = ("lora_unet_double_blocks_0_img_attn_proj", "lora_unet_single_blocks_0_linear2")
    inputs = {f"{name}.{part}": _tensor(32) for name in layers for part in ("weight", "on_input")}
    yield "ia3_lycoris", inputs, "IA3"
    yield "ia3", {f"{layer}.ia3_l": _tensor(32, 1)}, "IA3"
    yield "vera", {f"{layer}.vera_lambda_b": _tensor(32), f"{layer}.vera_lambda_d": _tensor(RANK)}, "VeRA"
    t_lora = {f"{layers[0]}.{name}": _tensor(RANK, 32) for name in ("q_layer.weight", "p_layer.weight")}
    yield "t_lora", {**t_lora, f"{layers[0]}.lambda_layer": _tensor(1, RANK)}, "T-LoRA"
    yield "boft", {f"{layer}.boft_R": _tensor(1, 4, 4, 4), f"{layer}.boft_s": _tensor(32, 1)}, "BOFT"
    yield "hra", {f"{layer}.hra_u": _tensor(32, 8)}, "HRA"
    embeddings = {f"dreamo_{name}_embedding.weight": _tensor(10, 32) for name in ("t5", "task", "idx")}
    yield "dreamo", {**embeddings, "double_blocks_0_processor_qkv_lora1.down.weight": _tensor(RANK, 32)}, "DreamO"


def contradictions() -> Iterator[tuple[str, bytes, str]]:
    """Files whose header says something else than their tensors."""
    made = make("diffusers_peft_meta", "alpha_half")
    metadata = dict(made.metadata or {})
    packed = json.loads(metadata["lora_adapter_metadata"])
    ranks = {"lora_adapter_metadata": json.dumps({**packed, "transformer.r": 16})}
    yield "header_of_another_rank.safetensors", save(made.state_dict, ranks), "rank"
    yield "header_cut.safetensors", save(made.state_dict, {"lora_adapter_metadata": "{"}), "lora_adapter_metadata"


def broken_files() -> Iterator[tuple[str, bytes, str]]:
    """`(file name, content, reason)` of every file to refuse; the reason is a word of the expected message."""
    yield from containers()
    for name, tensors, reason in (*contents(), *families()):
        yield f"{name}.safetensors", save(tensors), reason
    yield from contradictions()


def harmless_pickle() -> tuple[str, bytes]:
    """A pickle of nothing but tensors, which must load."""
    return "harmless.pt", _pickle(_default())
