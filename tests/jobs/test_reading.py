"""Reading and writing jobs: forms, round trips, and what is said of wrong ones."""

import json

import pytest
from PIL import Image

from diffusers_flux_ext.jobs import JobError, read_job, write_job
from tests.fixtures.jobs import BOX, EXAMPLES, POLYGON, STROKES


FULL = {
    "version": 1,
    "model": {"path": "tiny", "dtype": "float32"},
    "loras": [{"path": "a.safetensors", "weight": 0.8}],
    "additions": {"lora_fusion": {"path": "gates.safetensors"}},
    "components": {"text_encoder": None, "vae": {"path": "folder", "subfolder": "vae"}},
    "conditions": [{"type": name, **fields} for name, fields in EXAMPLES.items()],
    "call": {"prompt": ["a cat", "Katze, süß"], "seed": [1, 2], "sigmas": [1.0, 0.5], "latents": "z.npy"},
    "memory": {"vram_gib": 8.0, "cache": {"name": "tea", "threshold": 0.25}},
    "output": {"format": "webp", "quality": 80},
}


def problems(content):
    with pytest.raises(JobError) as caught:
        read_job(content)
    assert all(problem.field in str(caught.value) for problem in caught.value.problems)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_a_job_stays_the_same_through_each_form(tmp_path):
    job = read_job(FULL)
    assert job.to_dict() == FULL
    for name in ("job.json", "job.yaml"):
        write_job(job, tmp_path / name)
        assert read_job(tmp_path / name) == job
        assert read_job((tmp_path / name).read_text(encoding="utf-8")) == job
    assert read_job(json.dumps(FULL)) == job


def test_a_path_alone_stands_for_what_is_loaded_and_defaults_are_left_out():
    short = {"model": "tiny", "loras": ["a.safetensors"], "components": {"vae": "folder"}, "call": {"seed": 0}}
    assert read_job(short).to_dict() == {
        "version": 1,
        "model": {"path": "tiny"},
        "loras": [{"path": "a.safetensors"}],
        "components": {"vae": {"path": "folder"}},
    }
    assert read_job(short) == read_job({**short, "loras": [{"path": "a.safetensors", "weight": 1}], "call": {}})


def test_all_problems_are_named_with_their_fields():
    found = problems(
        {
            "models": "tiny",
            "conditions": [
                {"type": "EntityRegion"},
                {"type": "ControlNetImage", "image": 3, "scale": "strong", "negative": "none"},
                {"prompts": ["a"]},
            ],
            "call": {"prompts": "a", "width": "wide", "seed": -1},
            "loras": [{"weight": "x"}],
            "memory": {"vram_gib": 0, "offload": "all"},
        }
    )
    assert found == {
        "model": "is missing",
        "models": "is not known; did you mean `model`?",
        "conditions.0": "is of the type 'EntityRegion', which is not known; did you mean `EntityRegions`?",
        "conditions.1.controlnet": "is missing",
        "conditions.1.image": "expected text or list, got 3",
        "conditions.1.scale": "expected number or list, got 'strong'",
        "conditions.1.negative": "input should be 'same' or 'own', got 'none'",
        "conditions.2": "has no `type`, which says what it is",
        "call.prompts": "is not known; did you mean `call.prompt`?",
        "call.width": "input should be a valid integer, got 'wide'",
        "call.seed": "input should be greater than or equal to 0, got -1",
        "loras.0.path": "is missing",
        "loras.0.weight": "input should be a valid number, got 'x'",
        "memory.vram_gib": "input should be greater than 0, got 0",
        "memory.offload": "input should be 'none', 'model' or 'sequential', got 'all'",
    }


def test_regions_are_read_in_the_form_that_they_have():
    def masks(*given):
        return {"model": "tiny", "conditions": [{"type": "EntityRegions", "prompts": ["a"], "masks": list(given)}]}

    assert read_job(masks(BOX, STROKES, POLYGON, "a.png")).to_dict()["conditions"][0]["masks"] == [
        BOX, STROKES, POLYGON, "a.png",
    ]  # fmt: skip
    place = "conditions.0.masks.0"
    assert problems(masks([0.1, 0.2])) == {place: "has too few entries, got [0.1, 0.2]"}
    assert list(problems(masks({"polygon": [[0, 0], [1, 1]]}))) == [f"{place}.polygon"]
    wrong = {"strokes": [{"points": [[0.1, 0.2]], "widths": 3}]}
    assert problems(masks(wrong)) == {
        f"{place}.strokes.0.widths": f"is not known; did you mean `{place}.strokes.0.width`?"
    }


def test_another_pipeline_has_other_arguments_and_components():
    content = {"model": "tiny", "pipeline": "FluxAttributeControlPipeline", "components": {"value_encoder": "tiny"}}
    assert read_job({**content, "call": {"attribute_values": {"size": 0.5}}}).call.attribute_values == {"size": 0.5}
    assert problems({**content, "pipeline": "FluxFlexPipeline"}) == {"components.value_encoder": "is not known"}
    wrong = problems({**content, "pipeline": "FluxAttributeControl", "loras": 3})
    assert wrong["pipeline"].endswith("not known; did you mean `FluxAttributeControlPipeline`?")
    assert wrong.keys() == {"pipeline", "loras"}


def test_what_is_no_job_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.json").write_text('{"model": ')
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    messages = {
        "list.yaml": "holds list; expected entries such as `model:`",
        "broken.json": "is not JSON or YAML",
        "binary": "is neither a text nor an image",
        "plain.png": "has no job in its metadata",
    }
    for name, message in messages.items():
        with pytest.raises(JobError, match=message):
            read_job(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_job(tmp_path / "missing.json")
    assert problems({"version": 2, "model": "tiny"}) == {"version": "is 2; this version of the package reads 1"}


def test_numbers_and_texts_are_not_taken_for_each_other():
    found = problems(
        {"model": "tiny", "call": {"width": 64.5, "mask_padding": 1, "guidance_scale": True, "prompt": 3}}
    )
    assert found.keys() == {"call.width", "call.mask_padding", "call.guidance_scale", "call.prompt"}
    assert problems({"model": "tiny", "call": {"guidance_scale": float("nan")}}).keys() == {"call.guidance_scale"}
