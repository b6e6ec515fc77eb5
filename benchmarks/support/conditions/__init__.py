"""Every condition there is, with inputs for a tiny call and another value of each input.

A new method adds one entry to `CASES`; `tests/test_composition.py` then runs it with all the others.
"""

from benchmarks.support.conditions.case import OTHER_PICTURE, PICTURE, ConditionCase
from benchmarks.support.conditions.cases import CASES, METHODS, SYNTHETIC
from benchmarks.support.conditions.drawing import WINDOWS, draw, draw_anew, pipeline_for
from benchmarks.support.conditions.together import LORA, PROMISED, REFUSED, REFUSED_TWICE, promised


__all__ = [
    "CASES",
    "LORA",
    "METHODS",
    "OTHER_PICTURE",
    "PICTURE",
    "PROMISED",
    "REFUSED",
    "REFUSED_TWICE",
    "SYNTHETIC",
    "WINDOWS",
    "ConditionCase",
    "draw",
    "draw_anew",
    "pipeline_for",
    "promised",
]
