"""Jobs whose inputs stand by name and content, for metadata and for digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import PurePath
from typing import Any, Protocol

from .files import DATA, UPLOAD, JobFiles
from .values import ImageValue, LoRAValue, ModuleValue, RegionValue, StoredFile, TensorValue
from .walking import replace_leaves


class Described(Protocol):
    """The parts of a [`Job`] that hold inputs; that class uses this file."""

    @property
    def components(self) -> Mapping[str, Any]:
        """Modules by component."""

    @property
    def additions(self) -> Mapping[str, Any]:
        """Modules by addition."""

    @property
    def conditions(self) -> tuple[Any, ...]:
        """The conditions."""

    @property
    def call(self) -> Any:
        """The arguments of the call."""

    def to_dict(self) -> dict[str, Any]:
        """Return the job as JSON can hold it."""


def described(job: Described, files: JobFiles) -> dict[str, Any]:
    """Return a job with its inputs by name and SHA-256, and without absolute paths.

    Args:
        job (`Job`): The job.
        files ([`JobFiles`]): Its files.

    Returns:
        `dict[str, Any]`: a job, too.
    """
    return _with_inputs(job, lambda value, field: _by_name(value, files.digest(value, field), field))


def with_contents(job: Described, files: JobFiles, contents: MutableMapping[str, bytes]) -> dict[str, Any]:
    """Return a job with its inputs by name and SHA-256, as in `described` but with whole paths of models.

    Args:
        job (`Job`): The job.
        files ([`JobFiles`]): Its files.
        contents (`MutableMapping[str, bytes]`): Takes the content of each input, by SHA-256.

    Returns:
        `dict[str, Any]`: a job with the same digest, which gives images with the same metadata.
    """

    def by_content(value: Any, field: str) -> dict[str, str]:
        data = files.read(value, field)
        digest = hashlib.sha256(data).hexdigest()
        contents[digest] = data
        return _by_name(value, digest, field)

    return _with_inputs(job, by_content, whole_paths=True)


def canonical_digest(job: Described, files: JobFiles | None = None) -> str:
    """Return the SHA-256 of a job's canonical form, in which inputs stand by their content.

    Args:
        job (`Job`): The job.
        files ([`JobFiles`], *optional*): Its files.

    Returns:
        `str`: hexadecimal digits.

    Raises:
        JobError: if an input is missing.
    """
    found = files or JobFiles()
    content = _with_inputs(job, lambda value, field: {"sha256": found.digest(value, field)}, whole_paths=True)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _with_inputs(job: Described, write: Callable[[Any, str], Any], whole_paths: bool = False) -> dict[str, Any]:
    def replaced(value: Any, field: str) -> Any:
        is_file = isinstance(value, (ImageValue, TensorValue, RegionValue)) and isinstance(
            value.root, (str, StoredFile)
        )
        if is_file:
            return write(value.root, field)
        content = value.model_dump(mode="json", exclude_defaults=True)
        if not whole_paths and isinstance(value, (ModuleValue, LoRAValue)):
            content["path"] = _last_part(value.path)
        return content

    content = job.to_dict()
    for part in ("components", "additions", "call"):
        if part in content:
            replacements = replace_leaves(getattr(job, part), part, replaced)
            content[part] = {name: replacements[name] for name in content[part]}
    for index, condition in enumerate(job.conditions):
        replacements = replace_leaves(condition, f"conditions.{index}", replaced)
        content["conditions"][index] = {name: replacements[name] for name in content["conditions"][index]}
    if not whole_paths:
        for section in (content["model"], *content.get("loras", ())):
            section |= {name: _last_part(section[name]) for name in ("path", "base") if name in section}
    return content


def _by_name(value: str | StoredFile, sha256: str, field: str) -> dict[str, str]:
    if isinstance(value, StoredFile):
        return {"file": _last_part(value.file), "sha256": sha256}
    if value.startswith((DATA, UPLOAD)):
        return {"file": f"{field.replace('.', '_')}-{sha256[:12]}", "sha256": sha256}
    return {"file": _last_part(value), "sha256": sha256}


def _last_part(path: str) -> str:
    absolute = PurePath(path).is_absolute() or path.startswith("~") or re.match(r"[A-Za-z]:[\\/]|\w+://", path)
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].partition("?")[0] if absolute else path
