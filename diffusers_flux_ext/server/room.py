"""Which models stay loaded under a budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class ModelRoom:
    """Lets models be drawn with only while their sizes fit into a budget together.

    A model that would not fit waits for those that draw, and lets those go that do not, the least recently used first.
    A model that is larger than the budget draws alone: its own plan moves its weights.

    Args:
        sizes (`Mapping[str, int]`): Bytes of each model's weights.
        budget (`int`, *optional*): Bytes for all of them; without one all stay loaded and draw at once.
        release (`Callable[[str], None]`): Lets a model go.
    """

    def __init__(self, sizes: Mapping[str, int], budget: int | None, release: Callable[[str], None]) -> None:
        self._sizes = sizes
        self._budget = budget
        self._release = release
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._busy: set[str] = set()
        self._changed = threading.Condition()

    @property
    def loaded(self) -> list[str]:
        """Names of the models that are loaded, the least recently used first."""
        with self._changed:
            return list(self._loaded)

    @contextmanager
    def hold(self, model: str) -> Iterator[None]:
        """Keep a model loaded during the block.

        Args:
            model (`str`): Its name.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._fits(model, self._busy))
            for other in list(self._loaded):
                if not self._fits(model, self._loaded) and other not in self._busy and other != model:
                    del self._loaded[other]
                    self._release(other)
            self._busy.add(model)
            self._loaded[model] = None
            self._loaded.move_to_end(model)
        try:
            yield
        finally:
            with self._changed:
                self._busy.discard(model)
                self._changed.notify_all()

    def forget(self, model: str) -> None:
        """Let a model go that failed, so that it is loaded anew."""
        with self._changed:
            self._loaded.pop(model, None)
            self._release(model)

    def _fits(self, model: str, others: set[str] | OrderedDict[str, None]) -> bool:
        beside = sum(self._sizes.get(name, 0) for name in others if name != model)
        return self._budget is None or beside == 0 or beside + self._sizes.get(model, 0) <= self._budget
