"""The reference's picture processing of Insert-Anything, which needs OpenCV, at any size."""

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.support.reference.pipeline import flux_image
from benchmarks.support.reference.redux import with_constants
from diffusers_flux_ext.methods.insert_anything.opencv import dilate, resize_linear


RELEASED = (768, 768)


def _stand_in() -> types.ModuleType:
    """The two functions of OpenCV that are called; `tests/methods/insert_anything/test_opencv.py` compares them."""
    module = types.ModuleType("cv2")
    module.resize = lambda picture, size: resize_linear(picture, size[1], size[0])  # type: ignore[attr-defined]
    module.dilate = lambda mask, kernel, iterations: dilate(  # type: ignore[attr-defined]
        mask > 0, iterations * (len(kernel) // 2)
    ).astype(np.uint8)
    return module


@contextmanager
def opencv() -> Iterator[None]:
    """OpenCV, or a stand-in for it where it is not installed."""
    if importlib.util.find_spec("cv2") is not None:
        yield
        return
    sys.modules["cv2"] = _stand_in()
    try:
        yield
    finally:
        del sys.modules["cv2"]


def reference_unit(size: int) -> Any:
    """The reference's `FluxImageUnit_InsertAnything`, which has the height of the canvas as a constant."""

    class Unit(flux_image.FluxImageUnit_InsertAnything):
        pass

    Unit.prepare = with_constants(Unit.prepare, {RELEASED: (size, size)})
    return Unit()
