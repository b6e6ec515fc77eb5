"""Distillation: a student of few steps imitates the same model with many steps and guidance."""

from .batches import DistillationBatchMaker
from .paths import DistilledSamples, TeacherPaths
from .teacher import Teacher, TeacherOptions, states_at


__all__ = ["DistillationBatchMaker", "DistilledSamples", "Teacher", "TeacherOptions", "TeacherPaths", "states_at"]
