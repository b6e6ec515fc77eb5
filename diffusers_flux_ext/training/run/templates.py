"""Conditions of training samples, from the configuration."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ...condition import FluxCondition
from ...denoise import DenoisingStep
from ...methods.classes import condition_class as find_condition
from ...methods.classes import condition_methods
from ...methods.loading import load_module
from ...methods.method import resolve
from ...sequence import Contribution
from ..bare import bare_condition
from ..choices import check_names, choose
from ..config.sample_sections import ConditionSection, ModuleSection
from ..trained import TrainedModule, from_scratch, trainable_modules


@dataclass(frozen=True, eq=False)
class ConditionTemplate:
    """A condition of every sample: its class, its modules and options, and the columns that it reads.

    Args:
        section (`ConditionSection`): The configuration.
        make (`type`): The condition's class.
        modules (`Mapping[str, Any]`): Modules that run in training, by field.
        encoders (`Mapping[str, Any]`): Models and processors that only run when samples are encoded, by field.
    """

    section: ConditionSection
    make: type[FluxCondition]
    modules: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    encoders: Mapping[str, Any] = field(default_factory=dict)

    def bare(self) -> FluxCondition:
        """Return the condition without a sample's inputs."""
        return bare_condition(self.make, **self.modules, **self.section.options)

    def of(self, row: Mapping[str, Any]) -> FluxCondition:
        """Return the condition of a sample.

        Args:
            row (`Mapping[str, Any]`): The sample's values, with images in the place of files.

        Returns:
            `FluxCondition`: one that encodes nothing if all columns are empty.

        Raises:
            ValueError: if the inputs are wrong; the message names the condition.
        """
        inputs: dict[str, Any] = {}
        for name, column in self.section.inputs.items():
            if column not in row:
                raise ValueError(f"{self.section.type} reads the column {column!r}; the row has {sorted(row)}.")
            first, _, second = name.partition(".")
            if second:
                inputs.setdefault(first, {})[second] = row[column]
            else:
                inputs[first] = row[column]
        if self.section.inputs and all(map(is_empty, inputs.values())):
            return Absent()
        return self.make(**inputs, **self.modules, **self.encoders, **self.section.options)


class Absent(FluxCondition):
    """Stands for a condition that a sample does not have."""

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return nothing."""
        return Contribution()


def is_empty(value: Any) -> bool:
    """Whether a sample's value gives nothing to a condition."""
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return value is None or (isinstance(value, (list, tuple, str)) and not value)


def make_templates(
    sections: Sequence[ConditionSection], transformer: Any, seed: int, dtype: torch.dtype
) -> tuple[list[ConditionTemplate], dict[str, TrainedModule]]:
    """Load the modules of conditions.

    Args:
        sections (`Sequence[ConditionSection]`): The configuration.
        transformer (`FluxTransformer2DModel`): Gives the sizes of untrained modules.
        seed (`int`): Seed of untrained modules.
        dtype (`torch.dtype`): Data type of all modules, that of the transformer.

    Returns:
        `tuple[list[ConditionTemplate], dict[str, TrainedModule]]`: the templates, and what of them is trained, by the
        modules' fields.

    Raises:
        ValueError: if there is no such condition, field or module.
    """
    templates, trained = [], {}
    for number, section in enumerate(sections):
        make, modules, encoders = condition_class(section.type), {}, {}
        _check_fields(section, make)
        for name, module in section.modules.items():
            if ":" in module.kind:
                encoders[name] = _load_encoder(module, dtype)
                continue
            modules[name] = _load(module, transformer, seed, dtype)
            if module.train:
                key = name if name not in trained else f"{name}_{number + 1}"
                trained[key] = TrainedModule(modules[name], key, module.patterns)
        templates.append(ConditionTemplate(section, make, modules, encoders))
    return templates, trained


def condition_class(name: str) -> type[FluxCondition]:
    """Return a condition's class by its name; raise a `ValueError` that names the nearest one."""
    choose(condition_methods(), name, "condition")
    return find_condition(name)


def _check_fields(section: ConditionSection, make: type[FluxCondition]) -> None:
    given = [*(name.partition(".")[0] for name in section.inputs), *section.options, *section.modules]
    check_names(given, [each.name for each in fields(make)], section.type)
    twice = sorted({name for name in given if given.count(name) > 1 and name not in _dotted(section)})
    if twice:
        raise ValueError(f"{section.type} is given {twice} more than once among `inputs`, `options` and `modules`.")


def _dotted(section: ConditionSection) -> set[str]:
    return {name.partition(".")[0] for name in section.inputs if "." in name}


def _load(module: ModuleSection, transformer: Any, seed: int, dtype: torch.dtype) -> Any:
    if module.path is None:
        return from_scratch(module.kind, transformer, seed=seed, dtype=dtype, **module.sizes)
    method, record = trainable_modules()[module.kind]
    loaded = load_module((resolve(method.package, record.module),), module.path, dtype=dtype)
    return loaded.to(device=transformer.device)


def _load_encoder(module: ModuleSection, dtype: torch.dtype) -> Any:
    package, _, name = module.kind.partition(":")
    cls = getattr(importlib.import_module(package), name, None)
    if not callable(cls):
        raise ValueError(f"`{module.kind}` is not a class, so it cannot be loaded from `{module.path}`.")
    if not isinstance(cls, type):
        return cls(module.path)
    return load_module((cls,), str(module.path), dtype=dtype)
