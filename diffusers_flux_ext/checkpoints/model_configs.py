"""Configs of models that may be broken or hostile, checked before anything is built from them."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .messages import naming, shorten
from .reading import read_json


# The deepest language models have some hundreds.
MOST_LAYERS = 1000
MOST_TIMESTEPS = 100_000
LARGEST_NUMBER = 2**31
_PACKAGE = Path(__file__).resolve().parents[1]


def check_numbers(config: Mapping[str, Any]) -> None:
    """Check that the numbers of a model's config are plausible.

    Args:
        config (`Mapping[str, Any]`): The config, which may be nested.

    Raises:
        ValueError: If there are more than 1000 layers or 100,000 timesteps, or a number is infinite, NaN or above
            2**31, or the rotary axes do not fill the heads.
    """
    pending: list[tuple[str, Any]] = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.items())
        elif isinstance(value, list | tuple):
            pending.extend((name, item) for item in value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(name, value)
    _check_rotary_axes(config)


def _check_rotary_axes(config: Mapping[str, Any]) -> None:
    axes, width = config.get("axes_dims_rope"), config.get("attention_head_dim")
    if not isinstance(axes, list | tuple) or not isinstance(width, int):
        return
    if all(isinstance(axis, int | float) for axis in axes) and (sum(axes) != width or min(axes, default=0) < 1):
        raise ValueError(
            f"`axes_dims_rope` is {shorten(axes)}; expected positive numbers with the sum {width}, a head's width."
        )


def _check_number(name: object, value: float) -> None:
    counts = isinstance(name, str) and ("layers" in name or "depth" in name or name == "num_blocks")
    most = MOST_LAYERS if counts else MOST_TIMESTEPS if name == "num_train_timesteps" else LARGEST_NUMBER
    # Comparisons of whole numbers are exact, and those with NaN are false.
    if not (abs(value) <= most and (isinstance(value, int) or math.isfinite(value))):
        raise ValueError(f"`{shorten(name)}` is {shorten(value)}; expected a number of at most {most}.")


def read_model_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the config of a model and check its numbers.

    Args:
        path (`str` or `os.PathLike`): A local file.

    Returns:
        `dict[str, Any]`

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a JSON object, or a number is implausible.
        OSError: If it cannot be read.
    """
    with naming(path):
        config = read_json(path)
        check_numbers(config)
        return config


@contextmanager
def building(
    source: str | os.PathLike[str], passing: tuple[type[Exception], ...] = (), what: str = "a model that can be built"
) -> Iterator[None]:
    """Name the file in any error that a library raises while it builds something from it.

    Args:
        source (`str` or `os.PathLike`): The file or folder.
        passing (`tuple[type[Exception], ...]`, *optional*): Errors that are clear already.
        what (`str`, *optional*): What the file should describe.

    Raises:
        ValueError: If the block raises anything else, with the file's name.
    """
    try:
        yield
    # With a broken config, model constructors raise errors of any kind.
    except Exception as error:
        named = isinstance(error, ValueError | OSError) and os.fspath(source) in str(error)
        # A `ValueError` is clear if it is one of this package's own.
        clear = isinstance(error, passing) and (not isinstance(error, ValueError) or _is_own(error))
        if named or clear:
            raise
        reason = shorten(" ".join(str(error).split())) or type(error).__name__
        raise ValueError(f"`{source}` does not describe {what}: {reason}") from error


def _is_own(error: Exception) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and _PACKAGE in Path(frames[-1][0].f_code.co_filename).parents


class CheckedConfigMixin:
    """Checks the numbers of a config before a model is built from it in `from_pretrained`."""

    @classmethod
    def load_config(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        return_unused_kwargs: bool = False,
        return_commit_hash: bool = False,
        **kwargs: Any,
    ) -> Any:
        """See [`~diffusers.ConfigMixin.load_config`]; raise a `ValueError` if a number is implausible."""
        with naming(Path(pretrained_model_name_or_path) / "config.json"):
            loaded = super().load_config(  # type: ignore[misc]
                pretrained_model_name_or_path, return_unused_kwargs, return_commit_hash, **kwargs
            )
            check_numbers(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded
