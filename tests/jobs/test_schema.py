"""The schema and the fields behind it: every method is in it, with its help texts, and so is another package's."""

import importlib
import inspect
from dataclasses import fields

import pytest

from diffusers_flux_ext.jobs import JobError, job_schema, read_job
from diffusers_flux_ext.jobs.arguments import NOT_DATA, call_arguments, component_classes, condition_arguments
from diffusers_flux_ext.methods import METHODS, Method
from diffusers_flux_ext.methods.classes import condition_class, condition_methods, pipeline_class, pipeline_methods


KINDS = {"image", "region", "tensor", "module", "lora", "model", "seed"}
TOY = '''
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from diffusers_flux_ext import AttributeValueEncoder, Contribution, FluxCondition

@dataclass(frozen=True, eq=False)
class ToyGlow(FluxCondition):
    """Let an image glow.

    Args:
        lamp (`AttributeValueEncoder`): Where the light comes from.
        image (`PIL.Image.Image`, *optional*):
            What
            glows.
        colour (`"red"` or `"blue"`): Its [`Colour`].
        options (`Any`, *optional*): Anything.
        dim (`Callable`, *optional*): Code.
    """

    lamp: AttributeValueEncoder
    image: Image.Image | None = None
    colour: Literal["red", "blue"] = "red"
    options: Any = None
    dim: Callable[[float], float] | None = None
    later: "OnlyForTypeCheckers | None" = None

    def contribute(self, encoded, step):
        return Contribution()
'''


@pytest.fixture(scope="module")
def schema():
    return job_schema()


@pytest.mark.parametrize("name", condition_methods())
def test_every_field_of_a_condition_is_expressible_and_described(name, schema):
    condition, described = condition_class(name), schema["$defs"][name]["properties"]
    assert all(argument.is_expressible for argument in condition_arguments(condition))
    assert described.keys() == {"type", *(each.name for each in fields(condition))}
    assert schema["$defs"][name]["description"]
    missing = [field for field, each in described.items() if not each.get("description")]
    assert not missing, f"describe {missing} under Args of {name}"


@pytest.mark.parametrize("name", pipeline_methods())
def test_every_argument_of_a_pipeline_is_expressible_or_left_out_by_the_rule(name, schema):
    pipeline = pipeline_class(name)
    own = {part for part in inspect.signature(pipeline.__call__).parameters if part not in ("self", "args", "kwargs")}
    arguments = call_arguments(pipeline)
    assert all(argument.is_expressible for argument in arguments)
    assert {argument.name for argument in arguments} | NOT_DATA.keys() == own
    described = schema["$defs"][f"{name}Call"]["properties"]
    assert described.keys() == {"seed", *(argument.name for argument in arguments)}
    missing = [field for field, each in described.items() if not each.get("description")]
    assert not missing, f"describe {missing} under Args of {name}"
    plain = {"scheduler", "tokenizer", "tokenizer_2"}
    parts = schema["$defs"][f"{name}Components"]["properties"]
    assert parts.keys() == component_classes(pipeline).keys() >= plain
    assert parts.keys() == set(inspect.signature(pipeline).parameters)


def test_fields_say_what_their_values_stand_for(schema):
    found = {}
    for owner, each in schema["$defs"].items():
        for field, content in each.get("properties", {}).items():
            if "x-kind" in content:
                found[f"{owner}.{field}"] = content["x-kind"]
    assert set(found.values()) == KINDS - {"model"}
    assert schema["properties"]["model"]["x-kind"] == "model"
    expected = {
        "EntityRegions.masks": "region",
        "ControlNetImage.image": "image",
        "ControlNetImage.controlnet": "module",
        "ControlNetImage.generator": "seed",
        "IPAdapterImages.images": "image",
        "IPAdapterImages.image_embeds": "tensor",
        "NexusGenEmbedding.image_embeds": "tensor",
        "LoRAEmbedding.loras": "lora",
        "FluxConditionedPipelineCall.seed": "seed",
        "FluxInsertAnythingPipelineCall.source_mask": "region",
    }
    assert {field: found[field] for field in expected} == expected
    classes = schema["$defs"]["NexusGenEmbedding"]["properties"]["adapter"]["x-classes"]
    assert classes == ["NexusGenAdapter", "NexusGenEditingMerger"]


def test_defaults_and_choices_are_those_of_the_methods(schema):
    nexus = schema["$defs"]["NexusGenEmbedding"]["properties"]
    assert (nexus["language"]["enum"], nexus["language"]["default"]) == (["en", "zh"], "en")
    assert schema["$defs"]["FluxInsertAnythingPipelineCall"]["properties"]["num_inference_steps"]["default"] == 50
    assert schema["properties"]["pipeline"]["enum"] == list(pipeline_methods())
    assert schema["properties"]["call"]["title"] == "Call"


def test_the_schema_accepts_what_is_read_and_refuses_what_is_not(schema):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    content = {
        "model": "tiny",
        "pipeline": "FluxEliGenPipeline",
        "conditions": [{"type": "InpaintRegion", "image": "a.png", "mask": {"polygon": [[0, 0], [1, 0], [1, 1]]}}],
        "call": {"entity_prompts": ["a"], "entity_masks": [[0, 0, 1, 1]], "seed": [1, 2]},
    }
    read_job(content)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(content)
    for change in ({"pipeline": "FluxFlexPipeline"}, {"call": {"steps": 3}}, {"conditions": [{"type": "FillMask"}]}):
        assert not validator.is_valid({**content, **change})
        with pytest.raises(JobError):
            read_job({**content, **change})


def test_a_method_of_another_package_appears_with_its_help_texts(tmp_path, monkeypatch):
    (tmp_path / "toy_of_jobs").mkdir()
    (tmp_path / "toy_of_jobs" / "__init__.py").write_text("")
    (tmp_path / "toy_of_jobs" / "condition.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    toy = Method("toy_of_jobs", "Toy", "glows", "new", "toy", {"condition": ["ToyGlow"]})
    content = {
        "model": "tiny",
        "conditions": [{"type": "ToyGlow", "lamp": "tiny", "image": "a.png", "options": {"x": 1}}],
    }
    with pytest.raises(JobError, match="'ToyGlow', which is not known"):
        read_job(content)
    monkeypatch.setitem(METHODS, "toy_of_jobs", toy)
    described = job_schema()["$defs"]["ToyGlow"]
    assert described["description"] == "Let an image glow."
    assert {name: each.get("description") for name, each in described["properties"].items()} == {
        "type": "What it is.",
        "lamp": "Where the light comes from.",
        "image": "What glows.",
        "colour": "Its `Colour`.",
        "options": "Anything.",
    }
    assert read_job(content).to_dict()["conditions"] == [
        {"type": "ToyGlow", "lamp": {"path": "tiny"}, "image": "a.png", "options": {"x": 1}}
    ]
    with pytest.raises(JobError, match="`conditions.0.colours` is not known; did you mean `conditions.0.colour`"):
        read_job({"model": "tiny", "conditions": [{"type": "ToyGlow", "lamp": "tiny", "colours": "red"}]})
