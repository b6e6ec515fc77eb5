"""What scripts do with DiffSynth-Studio's pipeline beside calling it: its attributes, devices, memory, compilation."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline

from .._compat import vram_budget_of
from ..methods.lora_fusion.gates import FluxLoRAFusion
from ..pipeline.conditioned import FluxConditionedPipeline
from .handles import HANDLES, handle
from .older import REFUSED, refuse_former
from .vram import vram_arguments


NATIVE = {
    "tokenizer_1": "tokenizer",
    "tokenizer_2": "tokenizer_2",
    "controlnet": "controlnet",
    "ipadapter": "ip_adapter",
    "ipadapter_image_encoder": "image_encoder",
    "qwenvl": "mllm",
    "step1x_connector": "connector",
    "nexus_gen": "mllm",
    "nexus_gen_generation_adapter": "generation_adapter",
    "nexus_gen_editing_adapter": "editing_adapter",
    "value_controller": "value_encoder",
    "image_proj_model": "image_projector",
    "lora_encoder": "lora_encoder",
    "flux_redux_image_encoder": "redux_encoder",
    "flux_redux_image_embedder": "image_embedder",
}
"""Attributes that are the native pipeline's modules themselves, and their names there."""


class AttributesMixin:
    """The attributes and methods; `native` is the pipeline of this package that draws."""

    native: Any
    lora_patcher: FluxLoRAFusion | None
    device: str | torch.device
    torch_dtype: torch.dtype

    def compile_pipeline(
        self,
        mode: str = "default",
        dynamic: bool = True,
        fullgraph: bool = False,
        compile_models: list | None = None,
        **kwargs: Any,
    ) -> None:
        """Compile the blocks of the transformer.

        Args:
            mode (`str`, defaults to `"default"`): As for `torch.compile`.
            dynamic (`bool`, defaults to `True`): As for `torch.compile`.
            fullgraph (`bool`, defaults to `False`): As for `torch.compile`.
            compile_models (`list[str]`, *optional*): `["dit"]`, which is the default.
            kwargs: As for `torch.compile`.

        Raises:
            ValueError: if another model is named.
        """
        others = [name for name in compile_models or ["dit"] if name != "dit"]
        if others:
            raise ValueError(f"`compile_models` names {others}; only ['dit'] is compiled, as in DiffSynth-Studio.")
        self.native.transformer.compile_repeated_blocks(mode=mode, dynamic=dynamic, fullgraph=fullgraph, **kwargs)

    def enable_vram_management(
        self, num_persistent_param_in_dit: int | None = None, vram_limit: float | None = None, vram_buffer: float = 0.5
    ) -> None:
        """Keep calls within the card, as scripts of the second generation ask: a VRAM budget.

        Args:
            num_persistent_param_in_dit (`int`, *optional*): Raises if given: a budget is in GiB.
            vram_limit (`float`, *optional*): GiB; the card's size by default.
            vram_buffer (`float`, defaults to 0.5): GiB of it that stay free.

        Raises:
            ValueError: if the limit cannot be met, or there is neither a limit nor a card.
        """
        if num_persistent_param_in_dit is not None:
            raise ValueError("`num_persistent_param_in_dit` counts parameters; give `vram_limit` in GiB instead.")
        stages = {"offload_device": "cpu", "offload_dtype": self.torch_dtype}
        arguments = vram_arguments({"transformer": stages}, vram_limit, self.torch_dtype, self.device) or {}
        arguments["budget_gib"] -= vram_buffer
        self.native.enable_vram_budget(**arguments)

    def to_native(self, pipeline_class: type[DiffusionPipeline] = FluxConditionedPipeline, **kwargs: Any) -> Any:
        """Make a pipeline of this package or of diffusers with the same modules, to leave this interface.

        Args:
            pipeline_class (`type`, *optional*): [`FluxConditionedPipeline`] by default.
            kwargs: Components that it needs besides, such as `value_encoder=pipe.native.value_encoder`.

        Returns:
            `DiffusionPipeline`
        """
        return self.native.to_pipeline(pipeline_class, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move all models, or change their data type.

        Args:
            args, kwargs: As for `torch.nn.Module.to`.

        Returns:
            `FluxImagePipeline`: itself.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        self.device, self.torch_dtype = device or self.device, dtype or self.torch_dtype
        self.native.to(*[each for each in (device, dtype) if each is not None])
        if self.lora_patcher is not None:
            self.lora_patcher.to(*args, **kwargs)
        return self

    @property
    def vram_management_enabled(self) -> bool:
        """Whether the pipeline is under a VRAM budget."""
        return vram_budget_of(self.native) is not None

    @staticmethod
    def from_model_manager(*args: Any, **kwargs: Any) -> None:
        """Raise a `NotImplementedError` that shows today's form in place of the first generation's."""
        refuse_former("FluxImagePipeline.from_model_manager")

    def __getattr__(self, name: str) -> Any:
        native = self.__dict__.get("native")
        if name in HANDLES and native is not None:
            return handle(native, name)
        if name in NATIVE and native is not None:
            return getattr(native, NATIVE[name])
        if name in REFUSED:
            raise AttributeError(f"`pipe.{name}` {REFUSED[name]}.")
        raise AttributeError(f"`FluxImagePipeline` has no attribute {name!r}. What it has is in docs/migration.md.")

    def __setattr__(self, name: str, value: Any) -> None:
        known = {attribute: component for attribute, (component, *_) in HANDLES.items()} | NATIVE
        if name in known:
            raise AttributeError(f"`pipe.{name}` cannot be replaced here. Set `pipe.native.{known[name]}`.")
        if name in REFUSED:
            raise AttributeError(f"`pipe.{name}` {REFUSED[name]}.")
        super().__setattr__(name, value)
