"""The optimizers known by name: their classes, the packages that hold them and what they need."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..choices import check_names, choose


@dataclass(frozen=True)
class Kind:
    """An optimizer.

    Args:
        path (`str`): Its class, `module.Class`.
        package (`str`, *optional*): What `pip install` needs for it.
        defaults (`Mapping[str, Any]`): Its options where they differ from its class's.
        finds_rate (`bool`, defaults to `False`): Whether it finds its learning rate itself, one for all parameters.
        averages (`bool`, defaults to `False`): Whether its weights for use are averages, got by its `eval()`.
    """

    path: str
    package: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    finds_rate: bool = False
    averages: bool = False


KINDS: dict[str, Kind] = {
    "adamw": Kind("torch.optim.AdamW"),
    "adamw8bit": Kind("bitsandbytes.optim.AdamW8bit", "bitsandbytes"),
    # The rate is ours; the original's own scheduling is off.
    "adafactor": Kind(
        "transformers.optimization.Adafactor",
        "transformers",
        {"scale_parameter": False, "relative_step": False, "warmup_init": False},
    ),
    "lion": Kind("lion_pytorch.Lion", "lion-pytorch"),
    "prodigy": Kind(
        "prodigyopt.Prodigy",
        "prodigyopt",
        {"safeguard_warmup": True, "use_bias_correction": True},
        finds_rate=True,
    ),
    "schedule_free": Kind("schedulefree.AdamWScheduleFree", "schedulefree", averages=True),
    # With this factor it takes the learning rate of AdamW.
    "muon": Kind("torch.optim.Muon", "torch>=2.9", {"adjust_lr_fn": "match_rms_adamw"}),
}
_FINDING = ("Prodigy", "DAdapt")
_AVERAGING = ("ScheduleFree",)
# What `build_optimizer` gives itself.
_GIVEN = ("self", "params", "lr", "weight_decay")


def find_kind(name: str) -> Kind:
    """Return a known optimizer, or describe any other class.

    Args:
        name (`str`): A key of `KINDS`, or `module.Class`.

    Returns:
        `Kind`

    Raises:
        ValueError: if the name is not known and is not that of a class in a module.
    """
    if isinstance(name, str) and "." in name:
        last = name.rpartition(".")[2]
        finds_rate = any(part in last for part in _FINDING)
        return Kind(name, finds_rate=finds_rate, averages=any(part in last for part in _AVERAGING))
    return choose(KINDS, name, "optimizer, nor of the form `module.Class`")


def load_class(name: str) -> type[torch.optim.Optimizer]:
    """Import the class of an optimizer.

    Args:
        name (`str`): A key of `KINDS`, or `module.Class`.

    Returns:
        `type`

    Raises:
        ImportError: if its package is not installed; the message has the command that installs it.
        ValueError: if the name is not that of an optimizer.
    """
    kind = find_kind(name)
    module, _, last = kind.path.rpartition(".")
    package = kind.package or module.partition(".")[0]
    try:
        found = getattr(importlib.import_module(module), last, None)
    except ImportError as error:
        raise ImportError(
            f"The optimizer {name!r} needs a package that cannot be imported ({error}): run `pip install {package}`."
        ) from error
    if found is None and kind.package is not None:
        raise ImportError(f"The installed `{module}` has no `{last}`: run `pip install --upgrade '{package}'`.")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(
            f"{name!r} is not an optimizer: expected a subclass of `torch.optim.Optimizer`, got {found!r}."
        )
    return found


def check_options(name: str, options: Collection[str]) -> None:
    """Check that the class of an optimizer takes options.

    Args:
        name (`str`): A key of `KINDS`, or `module.Class`.
        options (`Collection[str]`): Their names.

    Raises:
        ImportError: if its package is not installed.
        ValueError: if an option is not known.
    """
    parameters = inspect.signature(load_class(name).__init__).parameters.values()
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        check_names(options, [each.name for each in parameters if each.name not in _GIVEN], f"the optimizer {name!r}")
