"""Attributes of single objects, replaced for a while."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any


Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class Replacement:
    """A method of one object that another function runs around, until [`restore`].

    The object is not kept alive, so that deleting a pipeline still frees its memory at once.

    Args:
        owner (`Any`): The object.
        name (`str`): The method's name; what was set on the object itself is restored later.
        around (`Callable`): Called with the method, its arguments and its arguments by name.
    """

    def __init__(self, owner: Any, name: str, around: Around) -> None:
        method = getattr(owner, name)
        bound = inspect.ismethod(method) and method.__self__ is owner
        original: Callable[[], Any] = weakref.WeakMethod(method) if bound else lambda: method

        def replaced(*args: Any, **kwargs: Any) -> Any:
            return around(original(), args, kwargs) if self.active else original()(*args, **kwargs)

        replaced.__name__, replaced.__doc__ = name, method.__doc__
        replaced.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
        self.active = True
        self._owner, self._name, self._replaced = weakref.ref(owner), name, replaced
        self._former = vars(owner).get(name)
        setattr(owner, name, replaced)

    def restore(self) -> None:
        """Put the method back; where it was replaced once more since, this replacement does nothing from now on."""
        self.active, owner = False, self._owner()
        if owner is None or vars(owner).get(self._name) is not self._replaced:
            return
        if self._former is None:
            delattr(owner, self._name)
        else:
            setattr(owner, self._name, self._former)
