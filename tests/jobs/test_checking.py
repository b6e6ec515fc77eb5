"""Everything wrong is named before anything is loaded."""

import pytest
from diffusers import DiffusionPipeline

from diffusers_flux_ext.jobs import JobError, JobFiles, JobRunner, check_job, read_job
from diffusers_flux_ext.tiny import ASSETS
from tests.fixtures.jobs import BOX, EXAMPLES


OUTLINES = {"type": "ControlNetImage", "controlnet": "tiny", "image": "outlines.png"}
ENTITIES = {"type": "EntityRegions", "prompts": ["a red circle"], "masks": [BOX]}
SIZE = {"type": "AttributeValues", "encoder": "tiny", "values": {"size": 0.5}}


@pytest.fixture
def problems(files, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pipeline was loaded")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refuse)

    def found(limits=files, **content):
        job = read_job({"model": "tiny", "call": {"prompt": "a", "width": 64, "height": 64}, **content})
        with pytest.raises(JobError) as caught:
            JobRunner(device="cpu").run(job, limits)
        return {problem.field: problem.message for problem in caught.value.problems}

    return found


def test_right_jobs_pass(files):
    conditions = [{"type": name, **fields} for name, fields in EXAMPLES.items()]
    for condition in [*conditions, ENTITIES, OUTLINES, SIZE]:
        check_job(read_job({"model": "tiny", "loras": ["tiny", "owner/name"], "conditions": [condition]}), files)


def test_files_that_are_missing_or_something_else_are_named(problems, folder):
    found = problems(
        conditions=[{**OUTLINES, "image": "missing.png"}, {**OUTLINES, "image": "face.safetensors"}],
        call={"prompt": "a", "image": "controlnet/config.json", "latents": "photo.png"},
        loras=[str(folder / "none.safetensors"), {"path": "tiny", "weight_name": "none.safetensors"}],
    )
    assert found["conditions.0.image"] == "is 'missing.png', which does not exist"
    assert "must have the shape" in found["conditions.1.image"]
    assert found["call.image"].startswith("is not an image")
    assert found["call.latents"].startswith("is not a tensor")
    assert found["loras.0.path"] == f"there is no file or folder `{folder / 'none.safetensors'}`"
    assert found["loras.1.path"] == "there is no file or folder `tiny/none.safetensors`"
    assert len(found) == 6


def test_modules_of_another_class_are_named(problems):
    found = problems(
        conditions=[{**SIZE, "encoder": "controlnet"}, {**OUTLINES, "controlnet": "nowhere.safetensors"}],
        components={"vae": "controlnet", "image_encoder": "siglip"},
        additions={"lora_fusion": "controlnet"},
    )
    assert found["conditions.0.encoder.path"].endswith("expected a `AttributeValueEncoder`")
    assert "there is no file or folder `nowhere.safetensors`" in found["conditions.1.controlnet.path"]
    assert "holds a FluxControlNetModel" in found["components.vae.path"]
    assert "holds a FluxControlNetModel" in found["additions.lora_fusion.path"]
    assert len(found) == 4
    unshipped = problems(conditions=[{"type": "ReduxImages", "images": "photo.png", "image_embedder": "tiny"}])
    assert unshipped == {"conditions.0.image_embedder.path": "no ReduxImageEncoder is shipped for the tiny model"}


def test_boxes_outside_of_the_canvas_are_named(problems):
    found = problems(
        conditions=[{**ENTITIES, "prompts": ["a"] * 3, "masks": [[0, 0, 64, 64], [60, 70, 90, 90], [0.5, 0, 0.4, 1]]}]
    )
    assert found.keys() == {"conditions.0.masks.1", "conditions.0.masks.2"}
    assert "does not lie on the canvas of 64 x 64 pixels" in found["conditions.0.masks.1"]


def test_too_many_pixels_are_named(problems, folder):
    found = problems(JobFiles(folder, max_pixels=1000), conditions=[OUTLINES])
    assert found == {"conditions.0.image": "has 64 x 64 pixels, more than 1000; reduce it"}


def test_what_a_condition_refuses_names_its_field(problems):
    found = problems(
        conditions=[
            {**OUTLINES, "scale": [1.0, 2.0, 3.0]},
            {**SIZE, "values": {"sizes": 0.5}},
            {**ENTITIES, "prompts": ["a", "b"]},
            {**OUTLINES, "mode": "canny"},
        ]
    )
    assert found.keys() == {
        "conditions.0.scale", "conditions.1.values", "conditions.2.masks", "conditions.3.mode",
    }  # fmt: skip
    assert found["conditions.1.values"].startswith("has the attributes ['sizes']")


def test_conditions_that_exclude_each_other_are_named(problems):
    inpaint = {"type": "InpaintRegion", "image": "photo.png", "mask": BOX}
    found = problems(conditions=[inpaint, inpaint])
    assert found.keys() == {"conditions"}


def test_arguments_of_the_call_are_checked_together(problems):
    found = problems(
        call={"prompt": ["a", "b"], "width": 0, "strength": 2.0, "num_images_per_prompt": 2, "seed": [1, 2, 3]},
        memory={"cache": {"name": "tea", "thresholds": 0.3}},
    )
    assert found["call.seed"] == "has 3 seeds for 4 images; give one, or one per image"
    assert found["call.width"] == "must be from 1 to 65536, got 0"
    assert found["memory.cache.thresholds"] == "is not known; did you mean `threshold`?"
    assert found.keys() == {"call.seed", "call.width", "call.strength", "memory.cache.thresholds"}


def test_models_that_are_none_are_named(problems, folder):
    assert "is not a pipeline's folder" in problems(model=str(folder))["model.path"]
    assert "there is no file or folder `no/such/model`" in problems(model="no/such/model")["model.path"]
    single = {"path": str(folder / "lora.safetensors"), "base": "no/such/base"}
    assert problems(model=single).keys() == {"model.base"}
    assert (ASSETS / "tiny_flux").is_dir()
