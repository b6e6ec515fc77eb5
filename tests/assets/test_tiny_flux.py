"""The embedded tiny FLUX.1 and its EliGen LoRA: small, ordinary, and able to draw."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel, FluxPipeline

from diffusers_flux_ext import (
    AttributeValueEncoder,
    AttributeValues,
    ControlNetImage,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    flux_shapes,
    tiny_flux_path,
)


ASSETS = Path(tiny_flux_path()).parent
LORA = "tiny_flux_eligen_lora.safetensors"
CALL = {"height": 128, "width": 128, "max_sequence_length": 32, "true_cfg_scale": 2.0, "negative_prompt": ""}


@pytest.fixture(scope="module")
def eligen() -> FluxEliGenPipeline:
    pipeline = FluxEliGenPipeline.from_pretrained(tiny_flux_path(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(ASSETS, weight_name=LORA)
    return pipeline


def draw(pipeline: FluxPipeline, prompts: list[str], **options: object) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(1)
    images = pipeline(prompts, num_inference_steps=10, generator=generator, output_type="np", **CALL, **options).images
    return list(images)


def test_the_assets_stay_small() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 12_000_000


def test_the_stock_pipeline_loads_it_and_draws_single_objects() -> None:
    pipeline = FluxPipeline.from_pretrained(tiny_flux_path(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rng = random.Random(3)
    scenes = [flux_shapes.sample_scene(rng, held_out=True, layouts=["single"]) for _ in range(8)]
    images = draw(pipeline, [flux_shapes.caption(scene, rng) for scene in scenes])
    summary = flux_shapes.summarize_scenes([flux_shapes.score_scene(*pair) for pair in zip(images, scenes)])
    assert summary["background"] == 1
    assert summary["color"] >= 0.75
    assert summary["position"] >= 0.75


def test_the_stock_pipeline_loads_the_lora() -> None:
    pipeline = FluxPipeline.from_pretrained(tiny_flux_path(), torch_dtype=torch.float32)
    pipeline.load_lora_weights(ASSETS, weight_name=LORA)
    adapted = [name for name, _ in pipeline.transformer.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 44
    assert not any(name.startswith("proj_out") or ".norm" in name for name in adapted)


def test_the_controlnet_moves_an_object_to_its_outlines() -> None:
    pipeline = FluxConditionedPipeline.from_pretrained(tiny_flux_path(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    controlnet = FluxControlNetModel.from_pretrained(ASSETS / "tiny_flux_controlnet", torch_dtype=torch.float32)
    circle = flux_shapes.ShapeObject("circle", "red", "", (36.0, 90.0), 22.0)
    outlines = flux_shapes.render_outlines(flux_shapes.Scene("white", (circle,)))
    conditions = [ControlNetImage(controlnet, outlines)]
    (image,) = draw(pipeline, ["a red circle on a white background"], conditions=conditions)
    x, y = flux_shapes.detect_objects(image)[0].center
    assert abs(x - 36) < 12
    assert abs(y - 90) < 12


def test_the_value_encoder_sets_sizes_and_the_style_lora_stripes() -> None:
    pipeline = FluxConditionedPipeline.from_pretrained(tiny_flux_path(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    encoder = AttributeValueEncoder.from_pretrained(ASSETS / "tiny_flux_size_encoder").to(torch.float32)
    pipeline.load_lora_weights(ASSETS, weight_name="tiny_flux_size_lora.safetensors", adapter_name="size")
    prompts = ["a red circle on a white background"] * 2
    options = {**CALL, "negative_prompt": [""] * 2}
    conditions = [AttributeValues(encoder, {"size": [0.1, 0.9]})]
    images = pipeline(
        prompts, num_inference_steps=10, generator=torch.Generator().manual_seed(1), output_type="np",
        conditions=conditions, **options,
    ).images  # fmt: skip
    small, large = (flux_shapes.detect_objects(image)[0].mask.sum() for image in images)
    assert large > 2 * small
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(ASSETS, weight_name="tiny_flux_style_lora.safetensors", adapter_name="style")
    (image,) = draw(pipeline, prompts[:1])
    assert flux_shapes.detect_objects(image)[0].style == "striped"


@pytest.mark.slow
def test_entities_appear_in_their_regions_only_with_their_prompts(eligen: FluxEliGenPipeline) -> None:
    scenes = flux_shapes.held_out_entity_scenes(12)
    prompts = [flux_shapes.background_caption(scene) for scene in scenes]
    boxes = [flux_shapes.entity_boxes(scene) for scene in scenes]
    phrases = [flux_shapes.entity_prompts(scene) for scene in scenes]

    def color(images: list[np.ndarray]) -> float:
        found = [flux_shapes.score_entities(*each) for each in zip(images, scenes, boxes)]
        return flux_shapes.summarize_entities(found)["color"]

    with_entities = color(draw(eligen, prompts, entity_prompts=phrases, entity_masks=boxes))
    without = color(draw(eligen, prompts))
    assert with_entities >= 0.7
    assert without <= 0.3


def test_moving_a_region_moves_its_object(eligen: FluxEliGenPipeline) -> None:
    for box in ((8, 40, 56, 88), (72, 40, 120, 88)):
        (image,) = draw(eligen, ["a white background"], entity_prompts=["a red square"], entity_masks=[box])
        found = flux_shapes.detect_objects(image)
        assert found
        assert found[0].color == "red"
        assert box[0] <= found[0].center[0] <= box[2]
        assert box[1] <= found[0].center[1] <= box[3]
