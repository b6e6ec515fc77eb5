"""The attributes of DiffSynth-Studio's pipeline that scripts touch, as handles on this package's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .._compat import offloading_suspended
from ..checkpoints.key_tables import build_weights
from ..checkpoints.layouts import TensorRecipe, plan_transformer_conversion
from ..checkpoints.messages import list_keys
from ..checkpoints.modules import check_floating
from ..checkpoints.text_encoder_layouts import plan_clip_text, plan_t5
from ..checkpoints.vae_layouts import plan_vae_half
from ..models.text_encoders import EMBEDDING
from ..offload.blocks import FP8


Plan = Callable[[Mapping[str, tuple[int, ...]]], dict[str, TensorRecipe]]


class ModuleHandle:
    """One model of the pipeline under DiffSynth-Studio's name.

    Args:
        name (`str`): The attribute, such as `"dit"`.
        pipe (`DiffusionPipeline`): The native pipeline.
        native (`str`): The component of it that the handle stands for, with diffusers' or transformers' key names.
        plan (`Callable`): Plans how a state dict in any layout becomes the model's.
        part (`str`, *optional*): Beginning of the keys that belong to it.
    """

    def __init__(self, name: str, pipe: Any, native: str, plan: Plan, part: str = "") -> None:
        self.name, self.native = name, native
        self.module: nn.Module = getattr(pipe, native)
        self._pipe = pipe
        self._plan, self._part = plan, part

    def load_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], strict: bool = True, assign: bool = False
    ) -> None:
        """Copy weights in DiffSynth-Studio's, Black Forest Labs' or diffusers' names into the model.

        Args:
            state_dict (`Mapping[str, torch.Tensor]`): The weights.
            strict (`bool`, defaults to `True`): Whether every tensor of the model must be there.
            assign (`bool`, defaults to `False`): As in torch; the weights are copied in any case.

        Raises:
            ValueError: if tensors are missing, surplus or of another shape, or LoRAs are loaded.
        """
        if any("lora" in key for key, _ in self.module.named_parameters()):
            raise ValueError(f"`pipe.{self.name}` has LoRAs. Load full weights first, or call `pipe.clear_lora()`.")
        plan = self._plan({key: tuple(tensor.shape) for key, tensor in state_dict.items()})
        own = dict(self._own())
        weights = build_weights(plan, {key: weight.shape for key, weight in own.items()}, state_dict.__getitem__)
        prefix = next((each for each in ("text_model.",) if f"{each}{next(iter(weights))}" in own), "")
        weights = {key if key in own else f"{prefix}{key}": tensor for key, tensor in weights.items()}
        missing = own.keys() - weights.keys() - EMBEDDING.keys()
        wrong = [key for key, tensor in weights.items() if key not in own or own[key].shape != tensor.shape]
        if wrong or (strict and missing):
            raise ValueError(
                f"The weights do not fit `pipe.{self.name}`: missing are {list_keys(missing) or 'none'}, surplus or "
                f"of another shape {list_keys(wrong) or 'none'}."
            )
        check_floating({key: tensor.dtype for key, tensor in weights.items()})
        self._copy(weights)

    def _copy(self, weights: Mapping[str, torch.Tensor]) -> None:
        stored = sorted({str(weight.dtype) for weight in self.parameters() if weight.dtype in FP8})
        if stored:
            raise ValueError(
                f"`pipe.{self.name}` is stored in {stored} under a VRAM budget, which rounds what is copied into it. "
                f"Give the weights as `ModelConfig(state_dict=...)` in `model_configs`."
            )
        with offloading_suspended(self._pipe), torch.no_grad():
            own = dict(self._own())
            for key, tensor in weights.items():
                own[key].copy_(tensor)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the weights under the native model's names, which [`~ModuleHandle.load_state_dict`] reads, too."""
        return dict(self._own())

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters."""
        return (weight for key, weight in self.module.named_parameters() if key.startswith(self._part))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the parameters with the native model's names."""
        return ((key, weight) for key, weight in self.module.named_parameters() if key.startswith(self._part))

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def _own(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((key, weight) for key, weight in self.module.state_dict().items() if key.startswith(self._part))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"`pipe.{self.name}` is a handle on `pipe.native.{self.native}` and has no `{name}`. Ask the native "
            f"model, `pipe.{self.name}.module`, which has the names of diffusers and transformers."
        )


HANDLES: Mapping[str, tuple[str, Plan, str]] = {
    "dit": ("transformer", plan_transformer_conversion, ""),
    "text_encoder_1": ("text_encoder", plan_clip_text, ""),
    "text_encoder_2": ("text_encoder_2", plan_t5, ""),
    "vae_encoder": ("vae", lambda shapes: plan_vae_half(shapes, "encoder"), "encoder."),
    "vae_decoder": ("vae", lambda shapes: plan_vae_half(shapes, "decoder"), "decoder."),
}
"""By attribute: the native component, the plan to read its weights, and the beginning of its keys."""


def handle(native: Any, name: str) -> ModuleHandle | None:
    """Return the handle of an attribute, or `None` where the model is not loaded."""
    component, plan, part = HANDLES[name]
    return None if getattr(native, component) is None else ModuleHandle(name, native, component, plan, part)
