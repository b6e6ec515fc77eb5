"""Former names and values of arguments: they still work, with a warning that names the present ones."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
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
        owner = target.__qualname__.removesuffix(".__call__")
        if not isinstance(target, type):
            return _translated(target, owner, names, values or {})
        target.__init__ = _translated(target.__init__, owner, names, values or {})  # type: ignore[misc]
        for former, name in names.items():
            setattr(target, former, property(_reader(former, name, owner)))
        return target

    return decorate


def _translated(function: Callable[..., Any], owner: str, names: Mapping[str, str], values: Values) -> Any:
    positions = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def translated(*args: Any, **kwargs: Any) -> Any:
        notes = []
        for former in [former for former in names if former in kwargs]:
            name = names[former]
            if name in kwargs or name in positions[: len(args)]:
                raise TypeError(
                    f"`{former}` of {owner} is the former name of `{name}`, but both were given. Give `{name}` only."
                )
            kwargs[name] = kwargs.pop(former)
            notes.append(f"`{former}` of {owner} is now called `{name}`")
        given = {**dict(zip(positions, args)), **kwargs}
        for name in [name for name in values if name in given]:
            value = _present(given[name], values[name])
            if value is not given[name]:
                notes.append(f"`{name}={given[name]!r}` of {owner} is now `{name}={value!r}`")
                position = positions.index(name)
                if position < len(args):
                    args = (*args[:position], value, *args[position + 1 :])
                else:
                    kwargs[name] = value
        if notes:
            _warn("; ".join(notes))
        return function(*args, **kwargs)

    return translated


def _present(value: Any, table: Mapping[Any, Any]) -> Any:
    try:
        return table.get(value, value)
    except TypeError:
        # What cannot be hashed, such as a mapping, has no former form.
        return value


def _reader(former: str, name: str, owner: str) -> Callable[[Any], Any]:
    def read(instance: Any) -> Any:
        _warn(f"`{former}` of {owner} is now called `{name}`")
        return getattr(instance, name)

    return read


def _warn(note: str) -> None:
    # Shown by default, unlike a DeprecationWarning: callers are users rather than authors of libraries.
    warnings.warn(f"{note}. The former form goes in version {REMOVED_IN}.", FutureWarning, stacklevel=3)
