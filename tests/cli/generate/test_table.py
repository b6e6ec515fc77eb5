"""Each flag sets a field that jobs have, and each method is reached."""

import pytest

from diffusers_flux_ext.cli.generate.table import all_flags
from diffusers_flux_ext.cli.main import build_parser
from diffusers_flux_ext.jobs import job_schema


@pytest.fixture(scope="module")
def schema():
    return job_schema()


def names(schema, section):
    found = schema["$defs"][section]
    # A model or a LoRA may be written as its path alone.
    return set(found.get("anyOf", [found])[-1]["properties"])


@pytest.mark.parametrize("flag", all_flags(), ids=lambda flag: flag.name)
def test_a_flag_sets_a_field_of_a_job(flag, schema):
    for field in flag.fields:
        section, _, rest = field.partition(".")
        assert section in schema["properties"]
        first = rest.split(".")[0]
        if section == "conditions":
            kind, name = rest.split(".")[:2]
            assert name in names(schema, kind)
        elif section == "call":
            assert first in names(schema, "FluxConditionedPipelineCall")
        elif rest:
            assert first in names(
                schema, {"model": "ModelSection", "memory": "MemorySection", "loras": "LoRASection"}[section]
            )


def test_flags_of_modules_name_paths_and_those_of_images_images(schema):
    for flag in all_flags():
        if flag.field.startswith("conditions.") and len(flag.fields) == 1:
            _, kind, name, *rest = flag.field.split(".")
            marked = schema["$defs"][kind]["properties"][name].get("x-kind")
            assert (marked == "module") == (rest == ["path"])
            assert (marked in ("image", "region", "module")) == flag.is_path


def test_flags_are_spelled_once():
    parser = build_parser()
    with pytest.raises(SystemExit):
        parser.parse_args(["generate", "--help"])
    spelled = [name for flag in all_flags() for name in (flag.name, flag.alias) if name]
    assert len(spelled) == len(set(spelled))
