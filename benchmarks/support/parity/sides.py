"""Both implementations of a base model with every module that methods add, for random combinations of methods."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.support.reference import (
    EmbeddedFace,
    reference_connector,
    reference_ip_adapter,
    reference_lora_encoder,
    reference_multi_controlnet,
    reference_nexus_adapter,
    reference_nexus_merger,
    reference_pair,
    reference_projector,
    reference_siglip,
    reference_value_encoder,
)
from benchmarks.support.reference.redux import add_redux
from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.controlnet import tiny_controlnet
from benchmarks.support.tiny.infinite_you import tiny_projector
from benchmarks.support.tiny.ip_adapter import tiny_ip_adapter, tiny_siglip
from benchmarks.support.tiny.lora_encoder import tiny_lora, tiny_lora_encoder
from benchmarks.support.tiny.nexus_gen import tiny_adapter, tiny_merger
from benchmarks.support.tiny.redux import tiny_redux_embedder, tiny_redux_vision
from benchmarks.support.tiny.step1x import tiny_connector
from diffusers_flux_ext import FluxConditionedPipeline, FluxFlowMatchScheduler
from diffusers_flux_ext.testing import quiet


BASES: dict[str, dict[str, Any]] = {
    "dev": {},
    "schnell": {"guidance_embeds": False},
    "fill": {"in_channels": 384, "out_channels": 64},
    "flex": {"in_channels": 196, "out_channels": 64, "num_layers": 8},
}
NETS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain", {}),
    ("plain", {"num_layers": 2, "num_single_layers": 0}),
    ("union", {}),
    ("inpaint", {}),
    ("upscaler", {}),
)


@dataclass
class Sides:
    """Both implementations of one base model, with every module that methods add; `folder` keeps LoRA files."""

    reference: Any
    ours: Any
    nets: list[Any]
    infuse_nets: list[Any]
    modules: dict[str, Any]
    loras: list[dict[str, torch.Tensor]]
    folder: Any
    files: list[str]


@cache
def sides(base: str) -> Sides:
    """Both sides of a base model of `BASES`."""
    both = reference_pair(seed=3, **BASES[base])
    ours = quiet(FluxConditionedPipeline(**{**both.components, "scheduler": FluxFlowMatchScheduler()}))
    reference, config = both.reference, ours.transformer.config
    depth = {"num_layers": config.num_layers, "num_single_layers": config.num_single_layers}
    nets = [tiny_controlnet(5 + index, kind, **sizes) for index, (kind, sizes) in enumerate(NETS)]
    infuse_nets = [tiny_controlnet(20), tiny_controlnet(21, num_layers=2, num_single_layers=0)]
    modules = {
        "adapter": tiny_ip_adapter(5, num_blocks=sum(depth.values())),
        "siglip": tiny_siglip(4),
        "projector": tiny_projector(7),
        "values": tiny_value_encoder(4),
        "lora encoder": tiny_lora_encoder(4, **depth),
        "redux vision": tiny_redux_vision(4, 384),
        "redux embedder": tiny_redux_embedder(5),
        "connector": tiny_connector(3),
        "nexus adapter": tiny_adapter(4),
        "nexus merger": tiny_merger(5),
    }
    loras = [tiny_lora(seed, rank=2 + seed, **depth) for seed in range(3)]
    folder = tempfile.TemporaryDirectory()
    files = [str(Path(folder.name) / f"{index}.safetensors") for index in range(len(loras))]
    for lora, file in zip(loras, files):
        save_file(lora, file)
    reference.controlnet = reference_multi_controlnet([*nets, *infuse_nets], ours.transformer)
    reference.ipadapter = reference_ip_adapter(modules["adapter"])
    reference.ipadapter_image_encoder = reference_siglip(modules["siglip"])
    reference.image_proj_model = reference_projector(modules["projector"])
    reference.infinityou_processor = EmbeddedFace()
    reference.value_controller = reference_value_encoder(modules["values"])
    reference.lora_encoder = reference_lora_encoder(modules["lora encoder"])
    reference.step1x_connector = reference_connector(modules["connector"])
    reference.nexus_gen_generation_adapter = reference_nexus_adapter(modules["nexus adapter"])
    reference.nexus_gen_editing_adapter = reference_nexus_merger(modules["nexus merger"])
    add_redux(reference, modules["redux vision"], modules["redux embedder"])
    return Sides(reference, ours, nets, infuse_nets, modules, loras, folder, files)
