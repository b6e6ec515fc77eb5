"""Named pipelines by jobs: their components are loaded from paths, and the pixels are those of their calls."""

import numpy as np
import pytest
import torch
from PIL import Image

import diffusers_flux_ext as dfx
from benchmarks.support.tiny.infinite_you import face
from benchmarks.support.tiny.nexus_gen import write_published_folder
from benchmarks.support.tiny.redux import tiny_redux_vision
from benchmarks.support.tiny.step1x import instruction_embeds
from diffusers_flux_ext.jobs import JobFiles, JobRunner, build_call, read_job
from diffusers_flux_ext.methods.classes import pipeline_class, pipeline_methods
from diffusers_flux_ext.testing import quiet, seeded, tiny_pipeline, tiny_transformer


CALL = {"height": 32, "width": 48, "num_inference_steps": 2, "max_sequence_length": 16, "seed": 2}
TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
# By pipeline: components, and arguments of the call.
CASES = {
    "FluxConditionedPipeline": ({}, {"prompt": "a cat", "image": "photo.png"}),
    "FluxEliGenPipeline": ({}, {"prompt": "a cat", "entity_prompts": ["a dog"], "entity_masks": [[0, 0, 0.5, 1]]}),
    "FluxInfiniteYouPipeline": (
        {"controlnet": "controlnet", "image_projector": "projector"},
        {"prompt": "a cat", "id_embeds": "face.safetensors", "region": "mask.png"},
    ),
    "FluxAttributeControlPipeline": (
        {"value_encoder": "value_encoder"},
        {"prompt": "a cat", "attribute_values": {"detail": 0.5}},
    ),
    "FluxLoRAEncoderPipeline": (
        {"lora_encoder": "lora_encoder"},
        {"prompt": "a cat", "lora_inputs": {"path": "lora.safetensors"}},
    ),
    "FluxNexusGenPipeline": (
        {"mllm": "nexus", "generation_adapter": "nexus_adapter", "text_encoder_2": None, "tokenizer_2": None},
        {"prompt": "a cat"},
    ),
    "FluxFlexPipeline": ({"transformer": "flex"}, {"prompt": "a cat", "control_image": "outlines.png"}),
    "FluxInsertAnythingPipeline": (
        {"transformer": "fill", "image_encoder": "redux_vision", "image_embedder": "redux"},
        {"source_image": "photo.png", "source_mask": [16, 16, 40, 40], "reference_image": "photo.png", "width": 64},
    ),
    "FluxStep1XEditPipeline": (
        {"connector": "connector", **dict.fromkeys(TEXT_PARTS)},
        {
            "image": "photo.png",
            "instruction_embeds": "instruction.safetensors",
            "negative_instruction_embeds": "instruction.safetensors",
        },
    ),
}


@pytest.fixture(scope="module")
def models(folder):
    tiny_pipeline(dfx.FluxConditionedPipeline).save_pretrained(folder / "model")
    tiny_transformer(in_channels=196, out_channels=64).save_pretrained(folder / "flex")
    tiny_transformer(in_channels=384, out_channels=64).save_pretrained(folder / "fill")
    tiny_redux_vision().save_pretrained(folder / "redux_vision")
    (folder / "nexus").mkdir()
    write_published_folder(folder / "nexus")
    return folder


@pytest.fixture(scope="module")
def runner():
    return JobRunner(device="cpu")


def test_every_pipeline_has_a_case():
    assert CASES.keys() == pipeline_methods().keys()
    assert face().shape == (16,)
    assert instruction_embeds().ndim == 3


@pytest.mark.parametrize("name", CASES)
def test_a_job_draws_what_the_call_of_the_pipeline_draws(name, runner, models):
    components, call = CASES[name]
    job = read_job({"model": "model", "pipeline": name, "components": components, "call": {**CALL, **call}})
    result = runner.run(job, JobFiles(models))
    built = build_call(job, JobFiles(models))
    given = {"dtype": torch.float32, **built.components}
    pipe = quiet(pipeline_class(name).from_pretrained(models / "model", **given))
    assert built.call["generator"].get_state().equal(seeded(2).get_state())
    images = pipe(**built.call).images
    assert len(images) == len(result.images) == 1
    assert isinstance(images[0], Image.Image)
    assert np.array_equal(images[0], result.images[0])
