"""Sheets of LoRAs, caches and diffusers' own pipelines."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FluxImg2ImgPipeline

from benchmarks.images.conditions import Rows, regions_of
from benchmarks.images.sheet import Cell, draw_boxes
from benchmarks.images.tiny import draw, held_out_scene, modules
from diffusers_flux_ext import (
    TeaCacheConfig,
    apply_tea_cache,
    attach_conditions,
    load_lora,
    remove_tea_cache,
    tiny_flux_path,
)
from diffusers_flux_ext.flux_shapes import entity_boxes, render
from diffusers_flux_ext.tiny import TINY_CALL, TINY_LORA


def lora() -> Rows:
    """Draw one scene with several weights of a LoRA."""
    _, prompt = held_out_scene(18, 1)
    row = [Cell(draw(prompt), "without")]
    for weight in (0.4, 0.7, 1.0):
        row.append(Cell(draw(prompt, loras=["style"], weights=weight), f"weight {weight}"))
    return [row]


def caches() -> Rows:
    """Draw one scene with several thresholds of TeaCache, and count the steps that are computed."""
    _, prompt = held_out_scene(14, 2)
    transformer = modules().pipe.transformer
    row = []
    for threshold in (0.0, 0.25, 0.6, 1.0):
        computed: list[Any] = []
        apply_tea_cache(transformer, TeaCacheConfig(threshold=threshold))
        counter = transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: computed.append(None))
        image = draw(prompt, num_inference_steps=28, true_cfg_scale=1.0, negative_prompt=None)
        counter.remove()
        remove_tea_cache(transformer)
        row.append(Cell(image, f"{threshold}: {len(computed)} of 28"))
    return [row]


def attach() -> Rows:
    """Draw with a pipeline of diffusers, without and with regions."""
    pipe = FluxImg2ImgPipeline.from_pretrained(tiny_flux_path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    load_lora(pipe, str(Path(tiny_flux_path()).parent / TINY_LORA))
    (start, _), (scene, prompt) = held_out_scene(16, 1), held_out_scene(20, 2)
    call = {**TINY_CALL, "image": render(start), "strength": 0.95}

    def image() -> Any:
        return pipe(prompt, generator=torch.Generator().manual_seed(0), **call).images[0]

    row = [
        Cell(render(start), "image"),
        Cell(image(), "FluxImg2Img"),
        Cell(draw_boxes(entity_boxes(scene)), "regions"),
    ]
    with attach_conditions(pipe, regions_of(scene)):
        return [[*row, Cell(image(), "with regions")]]
