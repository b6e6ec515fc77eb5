"""Imports the reference package (`diffsynth`), or skips the tests that ask for it.

The reference package imports torchvision without ever calling it on the FLUX path. Where torchvision has no build,
inert stand-ins are in `sys.modules` for the time of the import only, so no other test can meet them.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


STAND_INS = tuple(
    "torchvision" + suffix
    for suffix in (
        "",
        ".transforms",
        ".transforms.functional",
        ".transforms.v2",
        ".io",
        ".ops",
        ".utils",
        ".models",
    )
)

# The classes of transformers that the reference imports. Their modules ask once whether torchvision is there and
# must hear the truth, so they are loaded before the stand-ins exist.
TRANSFORMERS_NAMES = (
    "AutoImageProcessor",
    "CLIPTokenizer",
    "Qwen2VLImageProcessor",
    "SiglipVisionModel",
    "T5EncoderModel",
    "T5TokenizerFast",
)


class _Inert:
    """Stands for any name of torchvision; can be made, called and asked for attributes."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> "_Inert":
        return _Inert()

    def __getattr__(self, name: str) -> "_Inert":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Inert()


def _stand_in(name: str) -> types.ModuleType:
    def attribute(attribute_name: str) -> type[_Inert]:
        if attribute_name.startswith("__"):
            raise AttributeError(attribute_name)
        return _Inert

    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=True)
    module.__path__ = []
    module.__version__ = "0.0.0"  # type: ignore[attr-defined]
    module.__getattr__ = attribute  # type: ignore[method-assign]
    return module


@contextmanager
def _torchvision_importable() -> Iterator[None]:
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    modules = {name: _stand_in(name) for name in STAND_INS}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            sys.modules.pop(name, None)


def _load_transformers() -> None:
    import transformers
    import transformers.image_utils

    for name in TRANSFORMERS_NAMES:
        getattr(transformers, name)


def import_reference(module: str) -> types.ModuleType:
    """Imports a module of the reference package by its dotted name; skips the caller where it is not installed."""
    if importlib.util.find_spec("diffsynth") is None:
        pytest.skip("the reference package is not installed (pip install diffsynth==2.1.12)", allow_module_level=True)
    _load_transformers()
    with _torchvision_importable():
        return importlib.import_module(module)
