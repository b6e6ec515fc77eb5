"""A tiny Nexus-Gen: the published folder of the language model, the adapters, and decoder files."""

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.support.tiny.qwen_vl import HIDDEN, tiny_qwen_config, write_qwen_tokenizer
from diffusers_flux_ext import (
    NexusGenAdapter,
    NexusGenEditingMerger,
    NexusGenModel,
    QwenVLProcessor,
)
from diffusers_flux_ext.checkpoints.layouts import convert_transformer_state_dict
from diffusers_flux_ext.inputs.qwen_vl import ImageProcessor
from diffusers_flux_ext.testing import make_model, seeded_generator
from diffusers_flux_ext.testing.components import TRANSFORMER


MERGER: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "output_dim": TRANSFORMER["joint_attention_dim"],
    "expand_ratio": 2,
    "mrope_section": (2, 3, 3),
}


def tiny_adapter(seed: int = 0) -> NexusGenAdapter:
    """An adapter from the tiny language model to the tiny transformer."""
    return make_model(NexusGenAdapter, {"input_dim": HIDDEN, "output_dim": TRANSFORMER["joint_attention_dim"]}, seed)


def tiny_merger(seed: int = 0, **overrides: Any) -> NexusGenEditingMerger:
    """A merger from the tiny language model to the tiny transformer."""
    return make_model(NexusGenEditingMerger, {**MERGER, **overrides}, seed)


def published_name(name: str) -> str:
    """A weight of the language model as the published checkpoint spells it."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def write_published_folder(folder: Path, seed: int = 0) -> None:
    """Writes the language model in the published layout, in two shards, with its processor beside it.

    The config is flat, as transformers 4 wrote it. Values depend on the seed and the published names only.
    """
    write_qwen_tokenizer(folder)
    ImageProcessor(min_pixels=56 * 56, max_pixels=12845056).save_pretrained(folder)
    nested = tiny_qwen_config(QwenVLProcessor.from_pretrained(folder).tokenizer)
    with torch.device("meta"):
        model = NexusGenModel(nested)
    shapes = {published_name(name): weight.shape for name, weight in model.state_dict().items()}
    weights = {name: _value(name, shape, seed) for name, shape in shapes.items()}
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(_flat_config(nested)), encoding="utf-8")


def _value(name: str, shape: torch.Size, seed: int) -> torch.Tensor:
    noise = torch.randn(shape, generator=seeded_generator(seed, name))
    if name.endswith("bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1.0 + 0.2 * noise
    return noise if "embed" in name and len(shape) == 2 else noise / shape[1:].numel() ** 0.5


def _flat_config(nested: Any) -> dict[str, Any]:
    text, vision = nested.text_config.to_dict(), nested.vision_config.to_dict()
    shared = [
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "bos_token_id", "eos_token_id"),
    ]
    seen = [
        *("depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "window_size", "patch_size"),
        *("fullatt_block_indexes", "spatial_merge_size", "temporal_patch_size"),
    ]
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    rope = text["rope_parameters"]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **{name: text[name] for name in shared},
        **{name: getattr(nested, name) for name in ids},
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": rope["mrope_section"]},
        "sliding_window": 32768,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "tie_word_embeddings": False,
        "use_cache": False,
        "torch_dtype": "float32",
        "transformers_version": "4.49.0",
        "vision_config": {"model_type": "qwen2_5_vl", "in_chans": 3, "spatial_patch_size": 14, "tokens_per_second": 2}
        | {name: vision[name] for name in seen},
    }


def pictures(sizes: Mapping[str, tuple[int, int]]) -> dict[str, Image.Image]:
    """Pictures without symmetries of the given widths and heights."""
    ranges = (-2.0, -1.0, 0.7, 1.3)
    return {name: Image.effect_mandelbrot(size, ranges, 20).convert("RGB") for name, size in sizes.items()}


def published_decoder(transformer: Any, part: Any) -> dict[str, torch.Tensor]:
    """A transformer and its adapter or merger in one state dict, as a published decoder has them."""
    layout = convert_transformer_state_dict(transformer.state_dict(), to="diffsynth")
    # The last norm is in diffusers' order there.
    layout |= {key: torch.cat(value.chunk(2)[::-1]) for key, value in layout.items() if key.startswith("final_norm")}
    prefix = "" if isinstance(part, NexusGenAdapter) else "embedding_merger."
    beside = {f"{prefix}{key}": value for key, value in part.state_dict().items()}
    return {f"pipe.dit.{key}": value for key, value in layout.items()} | beside


def image_embeds(seed: int = 0, grid: tuple[int, int] = (4, 6)) -> dict[str, torch.Tensor]:
    """What a language model of 9 image tokens might give for a picture to edit."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image_embeds": torch.randn(1, 9, HIDDEN, generator=generator),
        "reference_embeds": torch.randn(1, grid[0] * grid[1] // 4, HIDDEN, generator=generator),
        "reference_grid": torch.tensor(grid),
    }


@cache
def tiny_language_model(seed: int = 0) -> tuple[NexusGenModel, QwenVLProcessor]:
    """The language model and its processor, loaded from the published layout."""
    with tempfile.TemporaryDirectory() as folder:
        write_published_folder(Path(folder), seed)
        model = NexusGenModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        return model, QwenVLProcessor.from_pretrained(folder)


def nexus_components() -> dict[str, Any]:
    """What a pipeline of Nexus-Gen has besides FLUX.1."""
    mllm, processor = tiny_language_model()
    adapters = {"generation_adapter": tiny_adapter(), "editing_adapter": tiny_merger()}
    return {"mllm": mllm, "mllm_processor": processor, **adapters}
