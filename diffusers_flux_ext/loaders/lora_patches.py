"""Changes of weights that no adapter layer can make: replaced norms, and deltas of norms and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


_ATTRIBUTE = "_flux_ext_patches"


@dataclass(frozen=True)
class Patch:
    """
    A change of one parameter.

    Attributes:
        name (`str`):
            The parameter.
        value (`torch.Tensor`):
            Its new value, or what is added to it.
        replaces (`bool`):
            Whether it is replaced; a replaced parameter does not depend on the adapter's weight.
    """

    name: str
    value: Tensor
    replaces: bool


class _State:
    """The patches of a model by adapter, and the values that they hide."""

    def __init__(self) -> None:
        self.patches: dict[str, Sequence[Patch]] = {}
        self.originals: dict[str, Tensor] = {}


def add_patches(model: nn.Module, adapter_name: str, patches: Sequence[Patch]) -> None:
    """Registers the patches of an adapter; [`apply_patches`] puts them to work."""
    if not patches:
        return
    state = getattr(model, _ATTRIBUTE, None) or _State()
    object.__setattr__(model, _ATTRIBUTE, state)
    state.patches[adapter_name] = patches


def apply_patches(model: nn.Module, weights: Mapping[str, float]) -> None:
    """
    Sets the patched parameters of a model for the active adapters, from their original values.

    Args:
        model (`torch.nn.Module`):
            The model.
        weights (`Mapping[str, float]`):
            The weights of the active adapters.
    """
    state: _State | None = getattr(model, _ATTRIBUTE, None)
    if state is None:
        return
    parameters = dict(model.named_parameters())
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


def remove_patches(model: nn.Module, adapter_name: str | None = None) -> None:
    """Forgets the patches of an adapter, or all; parameters that nothing patches any more get their old values."""
    state: _State | None = getattr(model, _ATTRIBUTE, None)
    if state is None:
        return
    if adapter_name is None:
        state.patches.clear()
    state.patches.pop(adapter_name or "", None)
    patched = {patch.name for patches in state.patches.values() for patch in patches}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in [name for name in state.originals if name not in patched]:
            parameters[name].copy_(state.originals.pop(name))


def patched_adapters(model: nn.Module) -> list[str]:
    """The adapters that have patches."""
    state: _State | None = getattr(model, _ATTRIBUTE, None)
    return [] if state is None else list(state.patches)
