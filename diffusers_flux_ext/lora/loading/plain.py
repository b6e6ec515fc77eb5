"""The weights of a model as if no adapters were in it."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


def plain_names(model: nn.Module) -> dict[str, str]:
    """Return the names of a model's own tensors without PEFT's wrapping, each with its present name.

    Args:
        model (`torch.nn.Module`): The model, with or without adapters.

    Returns:
        `dict[str, str]`: `{"proj_out.weight": "proj_out.base_layer.weight"}`, for example; adapters are left out.
    """
    wrapped = [f"{path}." for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    found: dict[str, str] = {}
    for key in _tensors(model):
        path = next((start for start in wrapped if key.startswith(start)), "")
        if not path:
            found[key] = key
        elif key.startswith(f"{path}base_layer."):
            found[path + key.removeprefix(f"{path}base_layer.")] = key
    return found


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's own tensors by their names without PEFT's wrapping.

    Args:
        model (`torch.nn.Module`): The model, with or without adapters.

    Returns:
        `dict[str, torch.Tensor]`: The tensors themselves, not copies; adapters are left out.
    """
    tensors = _tensors(model)
    return {name: tensors[key] for name, key in plain_names(model).items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    # Quantised weights are in pieces in a state dict.
    return {**model.state_dict(keep_vars=True), **dict(model.named_parameters(remove_duplicate=False))}
