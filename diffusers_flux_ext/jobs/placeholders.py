"""Stand-ins for modules, of their classes and configs but without weights."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.model_configs import building
from ..methods.loading import is_configured, load_module, local_source, module_class
from .building import words
from .errors import JobError
from .files import JobFiles
from .values import ModuleValue


class Unknown(Exception):
    """Nothing is known of a module before it is loaded, because it is a single file or a repository."""


def placeholder(files: JobFiles, value: ModuleValue, place: str) -> Any:
    """Return a stand-in for a module.

    Args:
        files ([`JobFiles`]): The files of the job.
        value (`ModuleValue`): The module.
        place (`str`): Its field, for errors.

    Returns:
        `Any`: a model on the meta device, or a processor.

    Raises:
        JobError: if there is no such module, or it is of another class.
        Unknown: if its config is not known.
    """
    try:
        found = local_source(value.classes, files.source(value.path), value.subfolder, value.weight_name)
        if found is None or not found.is_dir() or not is_configured(found):
            raise Unknown
        return _made(module_class(value.classes, found), str(found), found.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise JobError.of(f"{place}.path", words(error)) from error


@functools.lru_cache(maxsize=64)
def _made(kind: Any, folder: str, changed: int) -> Any:
    if not issubclass(kind, torch.nn.Module):
        return load_module((kind,), folder)
    path = Path(folder)
    with building(path, passing=(OSError,), what=f"a {kind.__name__}"), torch.device("meta"):
        if hasattr(kind, "load_config"):
            return kind.from_config(kind.load_config(path))
        if hasattr(kind, "config_class"):
            return kind(kind.config_class.from_pretrained(path))
    raise Unknown
