"""What a server offers by name: models, LoRAs and modules. Clients name nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import RequestError


@dataclass(frozen=True)
class ServedModel:
    """A model that clients may name.

    Attributes:
        name (`str`): Its name.
        model (`Mapping[str, Any]`): The job's `model` entry: `path`, and `revision`, `base` or `dtype`.
        call (`Mapping[str, Any]`): Call arguments that apply where a job gives none.
        fills (`bool`): Whether it is a Fill model, which sees the masked image.
    """

    name: str
    model: Mapping[str, Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    fills: bool = False


@dataclass(frozen=True)
class ServedLoRA:
    """A LoRA that clients may name, with its usual weight."""

    name: str
    path: str
    weight: float = 1.0


@dataclass(frozen=True)
class ServedModule:
    """A module of a condition or pipeline that clients may name."""

    name: str
    path: str


@dataclass(frozen=True)
class Served:
    """Everything that a server offers.

    Attributes:
        models (`Mapping[str, ServedModel]`): By name; the first is drawn with where a job names none.
        loras (`Mapping[str, ServedLoRA]`): By name.
        modules (`Mapping[str, ServedModule]`): By name.
    """

    models: Mapping[str, ServedModel]
    loras: Mapping[str, ServedLoRA] = field(default_factory=dict)
    modules: Mapping[str, ServedModule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that there is a model."""
        if not self.models:
            raise ValueError("A server needs at least one model; give `--model`, such as `--model tiny`.")

    @property
    def default_model(self) -> str:
        """The model of jobs that name none."""
        return next(iter(self.models))

    def model_of(self, job: Mapping[str, Any]) -> str:
        """Return the name of a job's model.

        Raises:
            RequestError: if no such model is offered.
        """
        given = job.get("model")
        name = self.default_model if given is None else _name(given, "model")
        return _one_of(self.models, name, "model.path").name

    def complete(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the model and its call arguments where a job gives none, so that it says all by itself.

        Args:
            job (`Mapping[str, Any]`): The job in a client's words.

        Raises:
            RequestError: if its model is not offered.
        """
        model = self.models[self.model_of(job)]
        found = {**job, "model": {"path": model.name}}
        call = job.get("call")
        if call is None or isinstance(call, Mapping):
            found["call"] = {**model.call, **(call or {})}
        return found

    def resolve(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Put the server's own places in for names.

        Args:
            job (`Mapping[str, Any]`): The job in a client's words, complete.

        Returns:
            `dict[str, Any]`: the job with paths, which no client is told.

        Raises:
            RequestError: if a name is not offered, or a file is described further than by a name.
        """
        model = self.models[self.model_of(job)]
        found = {
            name: self._with_modules(value, name) for name, value in job.items() if name not in ("model", "loras")
        }
        return found | {"model": dict(model.model), "loras": self._loras(job.get("loras"))}

    def _loras(self, given: Any) -> Any:
        if not isinstance(given, list):
            return given or []
        return [self._lora(entry, f"loras.{index}") for index, entry in enumerate(given)]

    def _lora(self, entry: Any, field: str) -> Any:
        name = _name(entry, field, also=("weight",))
        lora = _one_of(self.loras, name, f"{field}.path")
        weight = entry.get("weight") if isinstance(entry, Mapping) else None
        return {"path": lora.path, "weight": lora.weight if weight is None else weight}

    def _with_modules(self, value: Any, field: str) -> Any:
        """Resolve every `{path: NAME}` below a value."""
        if isinstance(value, list):
            return [self._with_modules(each, f"{field}.{index}") for index, each in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        if "path" in value:
            return {"path": _one_of(self.modules, _name(value, field), f"{field}.path").path}
        return {name: self._with_modules(each, f"{field}.{name}") for name, each in value.items()}


def _name(given: Any, field: str, also: tuple[str, ...] = ()) -> str:
    """Return the name in `NAME` or `{path: NAME}`."""
    if isinstance(given, str):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("path"), str):
        message = "expected the name of something that the server offers, as a text or as {path: NAME}"
        raise RequestError(422, f"{field}: {message}", [(field, message)])
    # Revisions, folders and files below a name are chosen when the server starts, not by clients.
    further = [name for name, value in given.items() if name != "path" and name not in also and value is not None]
    if further:
        message = f"got {further[0]!r}; a client gives the name as `path`, and the server knows the rest"
        raise RequestError(422, f"{field}.{further[0]}: {message}", [(f"{field}.{further[0]}", message)])
    return given["path"]


def _one_of(offered: Mapping[str, Any], name: str, field: str) -> Any:
    if name in offered:
        return offered[name]
    near = difflib.get_close_matches(name, offered, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    names = ", ".join(offered) or "nothing of this kind"
    message = (
        f"the server does not offer {name[:100]!r}{hint} It offers {names}."
        if near
        else (f"the server does not offer {name[:100]!r}; it offers {names}")
    )
    raise RequestError(422, f"{field}: {message}", [(field, message)])


def name_of(path: str | Path) -> str:
    """Return the name under which a path is offered where none is given: its last part without a suffix."""
    return Path(path).stem or str(path)
