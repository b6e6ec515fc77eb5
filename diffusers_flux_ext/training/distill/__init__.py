"""Distillation: a student of few steps imitates the same model with many steps and guidance."""

from .batches import DistillationBatchMaker
from .levels import StudentLevels
from .paths import DistilledSamples, TeacherPaths
from .teacher import Teacher, TeacherOptions, states_at


__all__ = [
    "DistillationBatchMaker",
    "DistilledSamples",
    "StudentLevels",
    "Teacher",
    "TeacherOptions",
    "TeacherPaths",
    "states_at",
]
