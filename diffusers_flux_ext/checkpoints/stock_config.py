"""Configs that keep their values between a diffusers class and a subclass with other defaults."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar


class StockConfigMixin:
    """Make a subclass of a diffusers class and that class read each other's configs.

    diffusers records which values were left at their defaults and does not pass those to another class, which then
    uses its own defaults: a value of 4 latent channels became one of 16. Here every value in a config is used as it
    is, a value missing from a config of the diffusers class has that class' default, and values whose defaults differ
    are passed on. List this mixin first, and call [`hand_on_defaults`] at the end of `__init__`.
    """

    stock_class: ClassVar[type]
    """The class of diffusers."""

    config: Any

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Make an object from a config, its own or that of the diffusers class.

        Args:
            config (`dict`): Such as the `config` of an object of either class.
            return_unused_kwargs (`bool`, *optional*, defaults to `False`):
                Also return the keyword arguments that are not arguments of this class.
            kwargs: Entries that replace those of `config`.

        Returns:
            An object of this class, or a tuple of it and the unused keyword arguments.
        """
        if isinstance(config, dict):
            named = {name: value for name, value in config.items() if name != "_use_default_values"}
            is_stock = config.get("_class_name") == cls.stock_class.__name__
            config = {**_defaults(cls.stock_class), **named} if is_stock else named
        return super().from_config(  # type: ignore[misc]
            config, return_unused_kwargs=return_unused_kwargs, **kwargs
        )

    def hand_on_defaults(self) -> None:
        """Treat values left at a default that differs from the diffusers class' as given."""
        used, stock = self.config.get("_use_default_values"), _defaults(self.stock_class)
        if used:
            own = _defaults(type(self))
            shared = [name for name in used if name not in stock or stock[name] == own.get(name)]
            self.register_to_config(_use_default_values=shared)  # type: ignore[attr-defined]


def _defaults(made: Any) -> dict[str, Any]:
    parameters = inspect.signature(made.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
