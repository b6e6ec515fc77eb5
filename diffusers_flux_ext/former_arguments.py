"""Former names and values of arguments: they still work, with a warning that names the present ones."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar


TargetT = TypeVar("TargetT", bound=Callable[..., Any])
Values = Mapping[str, Mapping[Any, Any]]

REMOVED_IN = "0.4"
"""The version that no longer takes the former ones."""


def former_arguments(values: Values | None = None, **names: str) -> Callable[[TargetT], TargetT]:
    """Accept former names and values of the arguments of a function, or of a class' constructor.

    The signature shows the present names only. A class keeps its fields readable by their former names.

    Args:
        values (`Mapping[str, Mapping[Any, Any]]`, *optional*): By present name, the present value of each former one.
        names (`str`): The present name of each former one.

    Returns:
        `Callable`: a decorator, which comes after `@dataclass` and before [`extends_call`].
    """

    def decorate(target: TargetT) -> TargetT:
        parameters = inspect.signature(target).parameters
        positions = tuple(name for name, part in parameters.items() if part.kind is part.POSITIONAL_OR_KEYWORD)
        owner = target.__qualname__.removesuffix(".__call__")
        if not isinstance(target, type):
            return _translated(target, _Former(owner, positions, names, values or {}))
        former = _Former(owner, positions, names, values or {})
        target.__init__ = _translated(target.__init__, former, skipped=1)  # type: ignore[misc]
        target._former_arguments = former  # type: ignore[attr-defined]
        for name in names:
            setattr(target, name, property(functools.partial(_read, former, name)))
        return target

    return decorate


def present_arguments(target: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate former names and values of a class' arguments, for code that does not call its constructor.

    Args:
        target (`type`): The class.
        given (`Mapping[str, Any]`): Arguments by name.

    Returns:
        `dict[str, Any]`: by present names; the same as given where the class has no former ones.

    Raises:
        TypeError: if an argument is given by both names.
    """
    former: _Former | None = getattr(target, "_former_arguments", None)
    return dict(given) if former is None else former.translate((), given)[1]


@dataclass(frozen=True)
class _Former:
    """The former arguments of a function: its name, its parameters, present names and present values."""

    owner: str
    positions: tuple[str, ...]
    names: Mapping[str, str]
    values: Values

    def translate(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        notes, named = [], dict(kwargs)
        for former, name in self.names.items():
            if former not in named:
                continue
            if name in named or name in self.positions[: len(args)]:
                raise TypeError(
                    f"`{former}` of {self.owner} is the former name of `{name}`, but both were given. Give `{name}` "
                    f"only."
                )
            named[name] = named.pop(former)
            notes.append(self.note(former))
        listed = list(args)
        for place, name in [*enumerate(self.positions[: len(args)]), *((name, name) for name in named)]:
            source: Any = listed if isinstance(place, int) else named
            value = _present(source[place], self.values.get(name, {}))
            if value is not source[place]:
                notes.append(f"`{name}={source[place]!r}` of {self.owner} is now `{name}={value!r}`")
                source[place] = value
        if notes:
            _warn("; ".join(notes))
        return tuple(listed), named

    def note(self, former: str) -> str:
        return f"`{former}` of {self.owner} is now called `{self.names[former]}`"


def _translated(function: Callable[..., Any], former: _Former, skipped: int = 0) -> Any:
    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> Any:
        given, named = former.translate(args[skipped:], kwargs)
        return function(*args[:skipped], *given, **named)

    return translated


def _read(former: _Former, name: str, instance: Any) -> Any:
    _warn(former.note(name), stacklevel=3)
    return getattr(instance, former.names[name])


def _present(value: Any, table: Mapping[Any, Any]) -> Any:
    try:
        return table.get(value, value)
    except TypeError:
        # What cannot be hashed, such as a mapping, has no former form.
        return value


def _warn(note: str, stacklevel: int = 4) -> None:
    # Shown by default, unlike a DeprecationWarning: callers are users rather than authors of libraries.
    warnings.warn(f"{note}. The former form goes in version {REMOVED_IN}.", FutureWarning, stacklevel=stacklevel)
