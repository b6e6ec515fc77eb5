"""Folders of whole pipelines that may be broken or hostile, checked before memory is allocated for their weights."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from .messages import list_keys, naming, shorten
from .model_configs import building, check_numbers, read_model_config
from .reading import read_json
from .stored import StoredTensor, read_layout


INDEX = "model_index.json"
WEIGHTS = tuple(
    f"{name}.safetensors{ending}" for name in ("diffusion_pytorch_model", "model") for ending in ("", ".index.json")
)
CONFIGS = ("config.json", "scheduler_config.json")
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def check_pipeline_folder(folder: str | os.PathLike[str]) -> None:
    """Check that the configs of a pipeline folder describe models whose weights are those of the files.

    Nothing is loaded: models are built without memory, and only the headers of weights files are read.

    Args:
        folder (`str` or `os.PathLike`): A local folder as `save_pretrained` writes it.

    Raises:
        FileNotFoundError: If there is no `model_index.json`.
        ValueError: If something is broken, with the name of the file.
        OSError: If something cannot be read.
    """
    folder = Path(folder)
    for name, (library, kind) in _components(folder / INDEX).items():
        configs = [folder / name / config for config in CONFIGS if (folder / name / config).is_file()]
        model_class = getattr(LIBRARIES.get(library), kind, None)
        if configs and inspect.isclass(model_class):
            _check_component(model_class, configs[0])


def _components(index: Path) -> dict[str, tuple[str, str]]:
    entries = {name: value for name, value in read_json(index).items() if not name.startswith("_")}
    components = {}
    for name, entry in entries.items():
        if not isinstance(entry, list):
            continue
        if len(entry) != 2 or not all(part is None or isinstance(part, str) for part in entry):
            raise ValueError(f"`{index}` has a wrong entry `{shorten(name)}`; expected a library and a class.")
        if None not in entry and Path(name).name == name:
            components[name] = (entry[0], entry[1])
    if not components:
        raise ValueError(f"`{index}` names no component of a pipeline.")
    return components


def _check_component(model_class: Any, config: Path) -> None:
    content = read_model_config(config)
    if issubclass(model_class, diffusers.ConfigMixin):
        with naming(config):
            check_types(model_class, content)
    if not issubclass(model_class, torch.nn.Module | diffusers.SchedulerMixin):
        return
    with building(config), torch.device("meta"):
        model = _build(model_class, config.parent)
    weights = next((config.parent / name for name in WEIGHTS if (config.parent / name).is_file()), None)
    # Quantised weights have other shapes than the model's.
    if isinstance(model, torch.nn.Module) and weights is not None and "quantization_config" not in content:
        _check_weights(model, config, read_layout(weights))


def _build(model_class: Any, folder: Path) -> Any:
    if issubclass(model_class, diffusers.ConfigMixin):
        return model_class.from_config(model_class.load_config(folder))
    return model_class(model_class.config_class.from_pretrained(folder))


def _check_weights(model: torch.nn.Module, config: Path, stored: Mapping[str, StoredTensor]) -> None:
    shapes = {key: tuple(weight.shape) for key, weight in model.state_dict().items()}
    files = ", ".join(sorted({tensor.path.name for tensor in stored.values()})[:5])
    wrong = [key for key, tensor in stored.items() if key in shapes and shapes[key] != tensor.shape]
    if wrong:
        raise ValueError(
            f"`{config}` is not the config of {files}, which differs in the shapes of {list_keys(wrong)}."
        )
    missing = shapes.keys() - stored.keys()
    # transformers stores tied weights once, and its loader renames keys of older files.
    is_complete = not isinstance(model, diffusers.ModelMixin) or bool(stored.keys() - shapes.keys())
    if missing and not is_complete:
        raise ValueError(f"{files} beside `{config}` lacks weights of the model: {list_keys(missing)}.")
    if sum(torch.Size(shapes[key]).numel() for key in missing) > 2 * sum(_count(tensor) for tensor in stored.values()):
        raise ValueError(f"`{config}` describes a far larger model than {files} beside it holds.")


def _count(tensor: StoredTensor) -> int:
    return torch.Size(tensor.shape).numel()


def check_types(model_class: Any, config: Mapping[str, Any]) -> None:
    """Check the values of a config against the types of a constructor's arguments.

    Args:
        model_class (`type`): The class of a diffusers model or scheduler.
        config (`Mapping[str, Any]`): Its config.

    Raises:
        ValueError: If a value has another type, or a number is absurd.
    """
    check_numbers(config)
    hints = typing.get_type_hints(model_class.__init__)
    defaults = inspect.signature(model_class.__init__).parameters
    for name, value in config.items():
        # Not every argument with the default None is annotated so.
        if name not in defaults or (value is None and defaults[name].default is None):
            continue
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"`{name}` is {shorten(value)!r}; expected {hints[name]}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits a type; unknown types accept everything."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is tuple or origin in (tuple, list):
        kinds = [one for one in arguments if one is not Ellipsis]
        return isinstance(value, list | tuple) and all(not kinds or _fits(item, kinds[0]) for item in value)
    return True
