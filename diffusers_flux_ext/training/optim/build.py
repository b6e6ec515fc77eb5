"""Optimizers from settings."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..choices import Number, choose
from .groups import GroupRule, parameter_groups
from .kinds import check_options, find_kind, load_class
from .rounding import RoundedOptimizer, check_dtypes
from .rules import LOW, RULES


# What Muon leaves to AdamW although it is a matrix: embedders, modulation and the model's last layer.
_NOT_FOR_MUON = re.compile(r"embed|norm|^(transformer\.)?proj_out\.")
_RATE = Number(1e-4, 0, open_low=True)
_DECAY = Number(0.01, 0)


@dataclass(frozen=True)
class OptimizerSettings:
    """How trained parameters are stepped.

    Args:
        name (`str`, defaults to `"adamw"`):
            `"adamw"`, `"adamw8bit"` (bitsandbytes), `"adafactor"` (transformers), `"lion"` (lion-pytorch),
            `"prodigy"` (prodigyopt), `"schedule_free"` (schedulefree), `"muon"`, or any `module.Class`. Muon steps
            matrices only; AdamW with its own defaults steps the rest, embedders and modulation.
        lr (`float`, defaults to 1e-4): Peak of the learning rate; 1 for Prodigy and D-Adaptation.
        weight_decay (`float`, defaults to 0.01): Weight decay.
        options (`Mapping[str, Any]`): Further arguments of the optimizer's class.
        groups (`Sequence[GroupRule]`): Rates and weight decays by name; the first rule that fits counts.
        lora_plus (`float`, *optional*): Ratio of the rates of LoRAs' second and first matrices.
        rounding (`str`, *optional*):
            How parameters of 16 bits keep small steps: `"stochastic"`, `"kahan"` or `"masters"`, see
            [`RoundedOptimizer`]. None expects float32 parameters.
        seed (`int`, defaults to 0): Of stochastic rounding.

    Raises:
        ValueError: if a name is not known or a number is out of range.
    """

    name: str = "adamw"
    lr: float = _RATE.default
    weight_decay: float = _DECAY.default
    options: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[GroupRule] = ()
    lora_plus: float | None = None
    rounding: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        kind = find_kind(self.name)
        _RATE.check("lr", self.lr)
        _DECAY.check("weight_decay", self.weight_decay)
        if self.lora_plus is not None:
            _RATE.check("lora_plus", self.lora_plus)
        if self.rounding is not None:
            choose(RULES, self.rounding, "rule of rounding")
        if self.rounding == "stochastic" and kind.averages:
            raise ValueError(
                f"The optimizer {self.name!r} switches between two sets of weights, which stochastic rounding would "
                "blur each time. Choose the rounding 'masters' or 'kahan'."
            )
        if kind.finds_rate:
            self._check_one_rate()

    def _check_one_rate(self) -> None:
        other = [rule.pattern for rule in self.groups if rule.lr not in (None, 0, self.lr)]
        if other or self.lora_plus is not None:
            cause = f"the patterns {other}" if other else "`lora_plus`"
            raise ValueError(
                f"The optimizer {self.name!r} finds one learning rate for all parameters, so {cause} cannot have "
                "another one."
            )


def check_optimizer(settings: OptimizerSettings) -> None:
    """Check, before anything is loaded, that an optimizer can be made.

    Args:
        settings (`OptimizerSettings`): The settings.

    Raises:
        ImportError: if its package is not installed; the message has the command that installs it.
        ValueError: if one of `options` is not known.
    """
    check_options(settings.name, settings.options)
    if find_kind(settings.name).finds_rate and settings.lr != 1:
        warnings.warn(
            f"The optimizer {settings.name!r} finds its learning rate itself and multiplies it by `lr`: 1 is usual, "
            f"got {settings.lr:g}.",
            stacklevel=2,
        )


def build_optimizer(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]] | Mapping[str, torch.nn.Parameter],
    settings: OptimizerSettings,
) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a run.

    Weights must be in place before: rounding by `"masters"` copies them.

    Args:
        named_parameters (`Iterable[tuple[str, torch.nn.Parameter]]` or `Mapping[str, torch.nn.Parameter]`):
            By name, as of `module.named_parameters()`; those that need no gradient are left out.
        settings (`OptimizerSettings`): The settings.

    Returns:
        `list[torch.optim.Optimizer]`: one, or with Muon two. Their groups note the peak rate as `"peak_lr"`, see
        [`set_rates`].

    Raises:
        ImportError: if the optimizer's package is not installed.
        ValueError: if nothing is trained, a rule concerns no parameter, or steps would be rounded away.
    """
    check_optimizer(settings)
    parameters = {name: each for name, each in dict(named_parameters).items() if each.requires_grad}
    if not parameters:
        raise ValueError("There is nothing to train: no parameter needs a gradient.")
    check_dtypes(parameters, settings.rounding)
    groups = parameter_groups(parameters, settings.lr, settings.weight_decay, settings.groups, settings.lora_plus)
    options = {**find_kind(settings.name).defaults, **settings.options}
    names = {parameter: name for name, parameter in parameters.items()}
    if settings.name != "muon":
        return [_make(settings, load_class(settings.name), options, groups, names)]
    matrices = {each for name, each in parameters.items() if each.ndim == 2 and not _NOT_FOR_MUON.search(name)}
    if not matrices:
        raise ValueError("Muon steps matrices, but there are none outside of embedders and norms: choose 'adamw'.")
    made = [_make(settings, load_class("muon"), options, _part(groups, matrices), names)]
    rest = _part(groups, names.keys() - matrices)
    return [*made, *([_make(settings, torch.optim.AdamW, {}, rest, names)] if rest else [])]


def _part(groups: Sequence[Mapping[str, Any]], chosen: Iterable[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Return the groups with some of their parameters only."""
    chosen = set(chosen)
    parts = [{**group, "params": [each for each in group["params"] if each in chosen]} for group in groups]
    return [part for part in parts if part["params"]]


def _make(
    settings: OptimizerSettings,
    optimizer: Any,
    options: Mapping[str, Any],
    groups: Sequence[dict[str, Any]],
    names: Mapping[torch.nn.Parameter, str],
) -> torch.optim.Optimizer:
    def make(groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
        return optimizer(groups, lr=settings.lr, weight_decay=settings.weight_decay, **options)

    own = {each for group in groups for each in group["params"]}
    made: torch.optim.Optimizer
    if settings.rounding is not None and any(each.dtype in LOW for each in own):
        owned = {parameter: name for parameter, name in names.items() if parameter in own}
        made = RoundedOptimizer(groups, make, settings.rounding, owned, settings.seed)
    else:
        made = make(groups)
    if hasattr(made, "train"):
        made.train()
    return made


@contextmanager
def averaged_weights(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """Give the model the weights for use inside this context: for validation and saving.

    Schedule-free optimizers train at other weights than those for use; with all others nothing happens.

    Args:
        optimizers (`Iterable[torch.optim.Optimizer]`): Those of [`build_optimizer`].
    """
    switched: list[Any] = [optimizer for optimizer in optimizers if hasattr(optimizer, "eval")]
    for optimizer in switched:
        optimizer.eval()
    try:
        yield
    finally:
        for optimizer in switched:
            optimizer.train()


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """Scale all gradients down to a common norm, if theirs is larger.

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): The trained parameters.
        max_norm (`float`, *optional*): The largest norm, above 0; None changes nothing.

    Returns:
        `torch.Tensor` of shape `()`: the norm before.

    Raises:
        ValueError: if `max_norm` is not above 0.
    """
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"`max_norm` must be above 0, or None for no limit, got {max_norm}.")
    if max_norm is not None:
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    else:
        norm = torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    whole: torch.Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole
