"""Changes of weights that adapter layers cannot make: replaced norms, and deltas of norms and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


_ATTRIBUTE = "_flux_ext_patches"


@dataclass(frozen=True)
class Patch:
    """A change of one parameter.

    Attributes:
        name (`str`): The parameter.
        value (`torch.Tensor`): Its new value, or what is added to it.
        replaces (`bool`): Whether it is replaced; a replaced parameter does not depend on the adapter's weight.
    """

    name: str
    value: Tensor
    replaces: bool


@dataclass
class _State:
    """The patches of a model by adapter, the weights of the active ones, and the original values."""

    patches: dict[str, Sequence[Patch]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)


def _state(model: nn.Module) -> _State | None:
    return getattr(model, _ATTRIBUTE, None)


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    # T5's embedding has two names.
    return dict(model.named_parameters(remove_duplicate=False))


def add_patches(model: nn.Module, adapter_name: str, patches: Sequence[Patch]) -> None:
    """Register the patches of an adapter; [`apply_patches`] applies them."""
    if not patches:
        return
    state = _state(model) or _State()
    object.__setattr__(model, _ATTRIBUTE, state)
    state.patches[adapter_name] = patches


def apply_patches(model: nn.Module, weights: Mapping[str, float], remember: bool = True) -> None:
    """Set the patched parameters of a model for the active adapters, from their original values.

    Args:
        model (`torch.nn.Module`): The model.
        weights (`Mapping[str, float]`): The weights of the active adapters.
        remember (`bool`, *optional*, defaults to `True`):
            Whether these weights are the ones that [`patch_weights`] gives from now on.
    """
    state = _state(model)
    if state is None:
        return
    if remember:
        state.weights = {name: weights[name] for name in state.patches if name in weights}
    parameters = _parameters(model)
    values: dict[str, Tensor] = dict(state.originals)
    for adapter, patches in state.patches.items():
        for patch in patches:
            original = state.originals.setdefault(patch.name, parameters[patch.name].detach().clone())
            value = values.setdefault(patch.name, original)
            if adapter in weights:
                values[patch.name] = _patched(value, patch, weights[adapter])
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _patched(value: Tensor, patch: Patch, weight: float) -> Tensor:
    given = patch.value.to(value.device)
    if patch.replaces:
        return given.to(value.dtype)
    return (value.float() + weight * given.float()).to(value.dtype)


def remove_patches(model: nn.Module, adapter_name: str, keep_values: bool = False) -> None:
    """Forget the patches of an adapter; parameters without patches get their old value, or keep the new one."""
    state = _state(model)
    if state is None or state.patches.pop(adapter_name, None) is None:
        return
    state.weights.pop(adapter_name, None)
    patched = {patch.name for patches in state.patches.values() for patch in patches}
    parameters = _parameters(model)
    with torch.no_grad():
        for name in [name for name in state.originals if name not in patched]:
            original = state.originals.pop(name)
            if not keep_values:
                parameters[name].copy_(original)
    if not keep_values:
        apply_patches(model, state.weights)


def patched_adapters(model: nn.Module) -> list[str]:
    """Return the adapters that have patches."""
    state = _state(model)
    return [] if state is None else list(state.patches)


def patch_weights(model: nn.Module) -> dict[str, float]:
    """Return the weights of the active adapters that have patches."""
    state = _state(model)
    return {} if state is None else dict(state.weights)
