"""The JSON schema of jobs, for forms and for other programs."""

from __future__ import annotations

from typing import Any

from ..methods.classes import pipeline_methods
from .job import DEFAULT_PIPELINE, job_model


_DEFINITIONS = "$defs"


def job_schema() -> dict[str, Any]:
    """Return the JSON schema of a job, with all registered conditions and pipelines and their help texts.

    `call` and `components` depend on the pipeline: those of the default one stand in `properties`, those of the others
    in `$defs` by names such as `FluxEliGenPipelineCall` and `FluxEliGenPipelineComponents`, and `allOf` joins them.

    Returns:
        `dict[str, Any]`: of draft 2020-12. `x-kind` says of a field what its values stand for: `image`, `region`,
        `tensor`, `module`, `lora`, `model` or `seed`; `x-classes` names the classes of modules.
    """
    schema = job_model().model_json_schema()
    definitions, rules = schema[_DEFINITIONS], []
    for name in pipeline_methods():
        own = job_model(name).model_json_schema()
        definitions |= {key: each for key, each in own[_DEFINITIONS].items() if key not in definitions}
        parts = {part: {"$ref": f"#/{_DEFINITIONS}/{name}{part.capitalize()}"} for part in ("call", "components")}
        chosen: dict[str, Any] = {"properties": {"pipeline": {"const": name}}}
        if name != DEFAULT_PIPELINE:
            chosen["required"] = ["pipeline"]
        rules.append({"if": chosen, "then": {"properties": parts}})
    properties = schema["properties"]
    about = properties["pipeline"].get("description")
    properties["pipeline"] = {
        "title": "Pipeline", "description": about, "type": "string", "default": DEFAULT_PIPELINE,
        "enum": list(pipeline_methods()),
    }  # fmt: skip
    for part in ("call", "components"):
        about = {key: each for key, each in properties[part].items() if key != "$ref"}
        properties[part] = {"title": part.capitalize(), **about, "type": "object"}
    for each in (schema, *definitions.values()):
        for field in each.get("properties", {}).values():
            _mark(field, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "allOf": rules}


def _mark(field: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Let a field say itself what its values, or those in its lists, stand for."""
    for marked in _inside(field, definitions):
        for mark in ("x-kind", "x-classes"):
            if mark in marked:
                field.setdefault(mark, marked[mark])


def _inside(schema: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if "x-kind" in schema:
        return [schema]
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        return [target] if "x-kind" in target else []
    inner = [*schema.get("anyOf", ()), *filter(None, [schema.get("items"), schema.get("additionalProperties")])]
    return [found for each in inner if isinstance(each, dict) for found in _inside(each, definitions)]
