"""From what a server is started with to what it offers, and what clients are told about that."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.reading import read_json
from ..lora.errors import LoRAError
from ..lora.tools.report import inspect_lora
from ..methods import METHODS
from ..pipeline.usual_call import call_of
from ..tiny import TINY, named_lora, named_model, shipped_folders, shipped_loras
from .limits import Limits
from .served import Served, ServedLoRA, ServedModel, ServedModule


FILL_CHANNELS = 384
USUAL_CALL = {"width": 1024, "height": 1024, "num_inference_steps": 28}
SUFFIX = ".safetensors"
# What the page shows of a LoRA; the rest is for `flux-ext lora inspect`.
SHOWN = ("format", "modules", "kinds", "ranks", "size", "warnings", "diffusers")
NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


def make_served(
    models: Sequence[tuple[str, Mapping[str, Any]]],
    loras: Sequence[tuple[str, str, float]] = (),
    modules: Sequence[tuple[str, str]] = (),
) -> Served:
    """Return what a server offers.

    Args:
        models (`Sequence[tuple[str, Mapping]]`): Names, and `model` entries of jobs.
        loras (`Sequence[tuple[str, str, float]]`, *optional*): Names, files or repositories, and weights.
        modules (`Sequence[tuple[str, str]]`, *optional*): Names, and folders, files or repositories.

    Returns:
        `Served`: with what is shipped for the tiny model, if that is one of them.

    Raises:
        ValueError: if a name is given twice, or is none.
    """
    found_loras = [ServedLoRA(name, {"path": path}, weight) for name, path, weight in loras]
    found_modules = [ServedModule(name, {"path": path}) for name, path in modules]
    if any(entry["path"] == TINY for _, entry in models):
        shipped = {name.removesuffix(SUFFIX): name for name in shipped_loras()}
        found_loras += [ServedLoRA(name, {"path": TINY, "weight_name": file}) for name, file in shipped.items()]
        found_modules += [ServedModule(folder.name, {"path": str(folder)}) for folder in shipped_folders()]
        # Jobs for the command line name what is shipped by the model's name alone.
        found_loras.append(ServedLoRA(TINY, {"path": TINY}))
        found_modules.append(ServedModule(TINY, {"path": TINY}))
    return Served(
        _by_name([_model(name, entry) for name, entry in models]), _by_name(found_loras), _by_name(found_modules)
    )


def _by_name(offered: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in offered:
        if each.name in found or not NAME.fullmatch(each.name):
            what = "twice" if each.name in found else "which is not made of letters, digits, `.`, `-` and `_`"
            raise ValueError(f"The name {each.name!r} is given, {what}. Give NAME=PATH with a name of its own.")
        found[each.name] = each
    return found


def _model(name: str, entry: Mapping[str, Any]) -> ServedModel:
    path = Path(named_model(entry["path"]))
    config = path / "transformer" / "config.json"
    channels = read_json(config).get("in_channels") if config.is_file() else None
    # Repositories are not asked for their configs at the start, which has to work offline.
    known = call_of(entry["path"]) if path.is_dir() else {}
    return ServedModel(name, dict(entry), {**USUAL_CALL, **known}, channels == FILL_CHANNELS)


def make_options(served: Served, schema: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Return what clients are told about what they may name.

    Args:
        served (`Served`): What is offered.
        schema (`Mapping[str, Any]`): The JSON schema of a job, whose fields say where modules belong.
        limits (`Limits`): The limits.

    Returns:
        `dict[str, Any]`
    """
    models = [
        {
            "name": model.name,
            "size": [model.call["width"], model.call["height"]],
            "steps": model.call["num_inference_steps"],
            "call": dict(model.call),
            "fills": model.fills,
        }
        for model in served.models.values()
    ]
    fields = _module_fields(schema)
    return {
        "models": models,
        "loras": [_lora_option(lora) for lora in served.loras.values() if lora.name != TINY],
        "modules": [_module_option(module, fields) for module in served.modules.values() if module.name != TINY],
        "methods": [
            {
                "name": method.name,
                "about": method.about,
                "conditions": list(method.exports.get("condition", ())),
                "pipelines": method.pipelines,
            }
            for method in METHODS.values()
        ],
        "limits": limits.to_dict(),
    }


def _lora_option(lora: ServedLoRA) -> dict[str, Any]:
    path = Path(named_lora(lora.lora["path"], lora.lora.get("weight_name")))
    try:
        report = inspect_lora(path).to_dict() if path.exists() else {}
    except LoRAError:
        # A file that is not a LoRA is refused when a job names it, with the reason.
        report = {}
    shown = json.loads(json.dumps({name: _finite(report[name]) for name in SHOWN if name in report}))
    return {"name": lora.name, "weight": lora.weight, "inspect": shown}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _module_option(module: ServedModule, fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    config = Path(module.module["path"], "config.json")
    found = read_json(config) if config.is_file() else {}
    kind = found.get("_class_name") or next(iter(found.get("architectures") or ()), None)
    # Nothing says what a file or a repository holds before it is loaded.
    return {"name": module.name, "class": kind, "fields": list(fields.get(kind, ())) if kind else _all(fields)}


def _all(fields: Mapping[str, Sequence[str]]) -> list[str]:
    return sorted({name for names in fields.values() for name in names})


def _module_fields(schema: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of the fields that take modules of a class, by class."""
    found: dict[str, list[str]] = {}
    for part in (schema, *schema.get("$defs", {}).values()):
        for name, field in part.get("properties", {}).items():
            for kind in field.get("x-classes", ()):
                if name not in found.setdefault(kind, []):
                    found[kind].append(name)
    return found
