"""Where objects of a call come from, so that they can be spelled as they were."""

from __future__ import annotations

from typing import Any


class Origins:
    """Objects and the values of a job that stand for them. Objects are compared by identity."""

    def __init__(self) -> None:
        # The objects are kept, since others may get their addresses otherwise.
        self._known: dict[int, tuple[Any, Any]] = {}

    def add(self, made: Any, value: Any) -> Any:
        """Note an object.

        Args:
            made (`Any`): The object.
            value (`Any`): What stands for it in a job, as JSON can hold it.

        Returns:
            `Any`: the object.
        """
        self._known[id(made)] = (made, value)
        return made

    def __contains__(self, made: Any) -> bool:
        return id(made) in self._known

    def __getitem__(self, made: Any) -> Any:
        return self._known[id(made)][1]
