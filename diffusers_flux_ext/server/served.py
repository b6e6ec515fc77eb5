"""What a server offers by name: models, LoRAs and modules. Clients name nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """A LoRA that clients may name: its entry without a weight, and its usual weight."""

    name: str
    lora: Mapping[str, Any]
    weight: float = 1.0


@dataclass(frozen=True)
class ServedModule:
    """A module of a condition or a pipeline that clients may name."""

    name: str
    module: Mapping[str, Any]


@dataclass(frozen=True)
class Served:
    """Everything that a server offers.

    Attributes:
        models (`Mapping[str, ServedModel]`): By name; the first draws jobs that name none.
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

    def complete(self, job: Mapping[str, Any], arguments: frozenset[str] | None = None) -> dict[str, Any]:
        """Fill in the model and its call arguments where a job gives none, so that it says all by itself.

        Args:
            job (`Mapping[str, Any]`): The job in a client's words.
            arguments (`frozenset[str]`, *optional*): Those that the job's pipeline takes; all by default.

        Raises:
            RequestError: if its model is not offered, or described further than by its name.
        """
        given = job.get("model")
        name = self.default_model if given is None else _name(given, "model")
        model = one_of(self.models, name, "model.path")
        found = {**job, "model": {"path": model.name}}
        call = job.get("call")
        if call is None or isinstance(call, Mapping):
            own = {key: each for key, each in model.call.items() if arguments is None or key in arguments}
            found["call"] = {**own, **(call or {})}
        return found


def _name(given: Any, field: str) -> str:
    """Return the name in `NAME` or `{path: NAME}`."""
    if isinstance(given, str):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("path"), str):
        message = "expected the name of something that the server offers, as a text or as {path: NAME}"
        raise RequestError(422, f"{field}: {message}", [(field, message)])
    refuse_further(given, field)
    return str(given["path"])


def refuse_further(given: Mapping[str, Any], field: str) -> None:
    """Refuse revisions, folders and files below a name, which are chosen when the server starts.

    Args:
        given (`Mapping[str, Any]`): A reference: `path`, and what else a client gave.
        field (`str`): Where it stands.

    Raises:
        RequestError: if there is anything else.
    """
    for name, value in given.items():
        if name != "path" and value is not None:
            place, message = f"{field}.{name}", "cannot be chosen here; the server knows it by the name in `path`"
            raise RequestError(422, f"{place}: {message}", [(place, message)])


def one_of(offered: Mapping[str, Any], name: str, field: str) -> Any:
    """Return what is offered under a name.

    Args:
        offered (`Mapping[str, Any]`): What there is.
        name (`str`): The name.
        field (`str`): Where it stands, for the message.

    Raises:
        RequestError: if nothing is.
    """
    if name in offered:
        return offered[name]
    near = difflib.get_close_matches(name, offered, n=1)
    names = f"did you mean {near[0]!r}?" if near else f"it offers {', '.join(offered) or 'none of this kind'}"
    message = f"the server does not offer {name[:100]!r}; {names}"
    raise RequestError(422, f"{field}: {message}", [(field, message)])
