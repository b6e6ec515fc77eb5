"""Columns for fields of conditions: those that a default would stand for in training are refused."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.support.tiny.controlnet import condition
from diffusers_flux_ext import ControlNetImage, EntityRegions, FluxConditionedPipeline, ReduxImages
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer
from diffusers_flux_ext.training import FluxTraining, bare_condition
from diffusers_flux_ext.training.columns_read import EVERY_STEP, check_columns, fields_read
from diffusers_flux_ext.training.run.templates import condition_class

from .samples import CANVAS, batch


RECIPES = sorted((Path(__file__).parents[2] / "examples" / "training").glob("*.yaml"))


@pytest.mark.parametrize(
    ("cls", "name"), [(ControlNetImage, "scale"), (ControlNetImage, "end"), (ReduxImages, "prompt_scale")]
)
def test_fields_that_steps_read_have_no_columns(cls, name):
    with pytest.raises(ValueError, match=f"`{name}` of {cls.__name__} is read at each step.*column 'x'.*`options`"):
        check_columns(cls, {name: "x"})


def test_inputs_of_encode_have_columns():
    check_columns(ControlNetImage, {"image": "a", "mode": "b"})
    check_columns(EntityRegions, {"prompts": "a", "masks": "b"})
    assert {"prompts", "masks", "max_sequence_length"} <= fields_read(EntityRegions, ["encode"])
    assert fields_read(EntityRegions, EVERY_STEP) == {"negative"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_has_a_column_that_is_refused(recipe):
    for section in yaml.safe_load(recipe.read_text(encoding="utf-8")).get("conditions", []):
        check_columns(condition_class(section["type"]), section.get("inputs", {}))


def test_samples_of_a_batch_have_modes_of_their_own():
    made = [condition("union", mode=mode) for mode in ("depth", 7)]
    pipe = tiny_pipeline(FluxConditionedPipeline)
    with torch.no_grad():
        encoded = [dict(each.encode(pipe, CANVAS)) for each in made]
    bare = bare_condition(ControlNetImage, controlnet=made[0].controlnet)
    both = {name: torch.cat([each[name] for each in encoded]) for name in encoded[0]}
    given = batch([both], 2, seed=3)
    with FluxTraining(tiny_transformer(), [bare]) as training, torch.no_grad():
        losses = training(given)
        swapped = training(replace(given, conditions=[{**both, "mode": both["mode"].flip(0)}]))
        for index in range(2):
            one = {
                each.name: getattr(given, each.name)[index : index + 1]
                for each in fields(given)
                if isinstance(getattr(given, each.name), torch.Tensor) and each.name != "latent_ids"
            }
            alone = training(replace(given, conditions=[encoded[index]], **one))
            torch.testing.assert_close(alone[0], losses[index], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(losses, swapped, rtol=1e-4)
