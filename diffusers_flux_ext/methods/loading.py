"""Loading a module or a processor by its class, from a folder, a repository or a published file."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download

from ..checkpoints import hub
from ..checkpoints.messages import shorten
from ..checkpoints.model_configs import building
from ..checkpoints.packed_weights import packings
from ..checkpoints.reading import read_json
from ..tiny import TINY, shipped_folders
from . import METHODS
from .method import resolve


CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json")
# Entries of configs that name a class.
_NAMED = ("_class_name", "image_processor_type", "tokenizer_class")
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".ckpt")
_LIBRARIES = ("diffusers_flux_ext", "diffusers", "transformers")


def is_loadable(kind: Any) -> bool:
    """Whether something is a class that [`load_module`] loads.

    Args:
        kind (`Any`): A class, or anything else.

    Returns:
        `bool`
    """
    if not isinstance(kind, type):
        return False
    return issubclass(kind, torch.nn.Module) or hasattr(kind, "from_pretrained") or _record_loader(kind) is not None


def load_module(
    classes: Sequence[type],
    path: str,
    *,
    subfolder: str | None = None,
    weight_name: str | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Load a model or a processor.

    Args:
        classes (`Sequence[type]`): The classes that it may be of; which one is read from its config or its keys.
        path (`str`):
            A folder of `from_pretrained`, a repository, a published file of `from_single_file`, or `"tiny"`, the
            module that is shipped for the embedded tiny model.
        subfolder (`str`, *optional*): A folder inside of the path.
        weight_name (`str`, *optional*): A published file inside of the path.
        revision (`str`, *optional*): Revision of a repository.
        dtype (`torch.dtype`, *optional*): Data type of a model.

    Returns:
        `Any`: a model is frozen and in eval mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else, or there is no such module.
    """
    local = local_source(classes, path, subfolder, weight_name)
    if local is None and weight_name is not None:
        local = Path(hf_hub_download(path, weight_name, subfolder=subfolder, revision=revision))
    if local is None:
        options = {"subfolder": subfolder, "revision": revision}
        given = {name: value for name, value in options.items() if value is not None}
        loaded = _from_pretrained(classes[0], path, dtype, **given)
    elif local.is_dir() and is_configured(local):
        loaded = _from_pretrained(module_class(classes, local), str(local), dtype)
    else:
        loaded = _from_published(classes, local, dtype)
    if not isinstance(loaded, torch.nn.Module):
        return loaded
    loaded.requires_grad_(False).eval()
    floats = {weight.dtype for weight in loaded.parameters() if weight.is_floating_point()}
    # Quantised weights keep their types.
    return loaded if dtype is None or floats <= {dtype} or packings(loaded) else loaded.to(dtype=dtype)


def local_source(
    classes: Sequence[type], path: str, subfolder: str | None = None, weight_name: str | None = None
) -> Path | None:
    """Return the local file or folder that a module is loaded from; `None` for a repository.

    Args:
        classes (`Sequence[type]`): See [`load_module`].
        path (`str`): See [`load_module`].
        subfolder (`str`, *optional*): See [`load_module`].
        weight_name (`str`, *optional*): See [`load_module`].

    Returns:
        `Path`, *optional*

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if no such module is shipped.
    """
    if path == TINY:
        return _shipped(classes)
    if not os.path.exists(path):
        if not is_repository(path):
            raise FileNotFoundError(f"there is no file or folder `{shorten(path)}`, and it is not a repository's name")
        return None
    found = Path(path, subfolder or "", weight_name or "")
    if not found.exists():
        raise FileNotFoundError(f"there is no file or folder `{found}`")
    return found


def is_repository(path: str) -> bool:
    """Whether a path that does not exist can be the name of a repository: `owner/name`.

    Args:
        path (`str`): The path.

    Returns:
        `bool`
    """
    return hub.is_repository(path, _WEIGHTS)


def is_configured(folder: Path) -> bool:
    """Whether a folder has the config of a model or a processor."""
    return any((folder / name).is_file() for name in CONFIGS)


def module_class(classes: Sequence[type], folder: Path) -> type:
    """Return the class of what a folder holds.

    Args:
        classes (`Sequence[type]`): The classes that it may be of.
        folder (`Path`): A folder with a config.

    Returns:
        `type`: one of the classes, or a subclass of one.

    Raises:
        ValueError: if the config names another class.
    """
    config = _config(folder) or {}
    named = [str(config[entry]) for entry in _NAMED if entry in config] + list(config.get("architectures") or ())
    for name in named:
        for kind in (*classes, *_public(name)):
            if kind.__name__ in (name, f"{name}Pil", f"{name}Fast") and issubclass(kind, tuple(classes)):
                return kind
    expected = " or ".join(f"`{kind.__name__}`" for kind in classes)
    foreign = "_class_name" in config or not any(_may_hold(kind, config) for kind in classes)
    if named and foreign:
        raise ValueError(f"`{folder}` holds a {named[0]}; expected a {expected}")
    return next((kind for kind in classes if _may_hold(kind, config)), classes[0])


def _may_hold(kind: Any, config: Any) -> bool:
    """Whether weights with a config of transformers may have those of a class in them, as a part or whole."""
    own = getattr(getattr(kind, "config_class", None), "model_type", None)
    parts = [part for part in config.values() if isinstance(part, dict)]
    kinds = [part.get("model_type") for part in (config, *parts)]
    # Some configs of parts name no type: SigLIP's vision model is `siglip_vision_model` in a model `siglip`.
    return own is None or not any(kinds) or any(each and (own == each or own.startswith(f"{each}_")) for each in kinds)


def _public(name: str) -> Iterator[type]:
    for library in _LIBRARIES:
        found = getattr(importlib.import_module(library), name, None)
        if isinstance(found, type):
            yield found


def _config(folder: Path) -> dict[str, Any] | None:
    path = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    return None if path is None else read_json(path)


def _shipped(classes: Sequence[type]) -> Path:
    for folder in shipped_folders():
        config = _config(folder) or {}
        if any(config.get("_class_name") == kind.__name__ for kind in classes):
            return folder
    names = " or ".join(kind.__name__ for kind in classes)
    raise ValueError(f"no {names} is shipped for the tiny model")


def _from_pretrained(kind: Any, path: str, dtype: torch.dtype | None, **options: Any) -> Any:
    if not hasattr(kind, "from_pretrained"):
        raise ValueError(f"`{path}` cannot be read as a {kind.__name__}; give its published file")
    if issubclass(kind, torch.nn.Module) and dtype is not None:
        options["torch_dtype" if hasattr(kind, "load_config") else "dtype"] = dtype
    with building(path, passing=(OSError, ValueError), what=f"a {kind.__name__}"):
        return kind.from_pretrained(path, **options)


def _from_published(classes: Sequence[type], source: Path, dtype: torch.dtype | None) -> Any:
    """Read a published file, as the first class that recognises its keys."""
    errors = []
    for kind in classes:
        read = _published_reader(kind)
        if read is None:
            continue
        takes_dtype = "torch_dtype" in inspect.signature(read).parameters
        try:
            return read(source, **({"torch_dtype": dtype} if takes_dtype else {}))
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    names = " or ".join(kind.__name__ for kind in classes)
    what = "a folder without a config" if source.is_dir() else "a single file"
    raise ValueError(f"a {names} is not read from `{source}`, {what}; give a folder of `from_pretrained`")


def _published_reader(kind: Any) -> Callable[..., Any] | None:
    reader: Any = _record_loader(kind) or getattr(kind, "from_single_file", None)
    return getattr(reader, "from_single_file", reader) if isinstance(reader, type) else reader


def _record_loader(kind: type) -> Any:
    names = {base.__name__: base for base in kind.__mro__}
    for method in METHODS.values():
        for reference, loader in method.loaders.items():
            # Records are resolved for classes of the same name alone, since that imports a method.
            wanted = names.get(reference.partition(":")[2])
            if wanted is not None and resolve(method.package, reference) is wanted:
                return resolve(method.package, loader)
    return None
