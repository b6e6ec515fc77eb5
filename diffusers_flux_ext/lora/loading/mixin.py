"""LoRA loading of the pipelines: every layout, every part."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME, LORA_WEIGHT_NAME_SAFE

from ..._compat import offloading_suspended
from ...checkpoints.writing import written_at_once
from ..errors import LoRAError, naming_files
from ..files import LoRASource, materialize
from ..layouts import lora_layout
from ..writing.write import write_lora
from .deltas import check_plain
from .load import COMPONENTS, load_into, lora_models, read_source, unload_lora
from .patches import apply_patches, patch_weights, patched_adapters


class FluxExtLoraLoaderMixin(FluxLoraLoaderMixin):
    """
    LoRA loading for pipelines: files of any trainer, with all of their parts, T5's included.

    What diffusers' methods do they do here as well; see [`load_lora`] for what is loaded.
    """

    _lora_loadable_modules: ClassVar[list[str]] = list(COMPONENTS)

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor], **kwargs: Any
    ) -> Any:
        """
        Reads a LoRA into diffusers' layout.

        Args:
            pretrained_model_name_or_path_or_dict (`str` or `dict[str, torch.Tensor]`):
                Repository, folder, file or state dict.
            kwargs:
                As for [`~diffusers.loaders.FluxLoraLoaderMixin.lora_state_dict`], and `strict`.

        Returns:
            `dict`, or a `tuple` with the alphas and the metadata when `return_alphas` or `return_lora_metadata`.

        Raises:
            LoRAError: If it cannot be read.
        """
        with_alphas, with_metadata = kwargs.pop("return_alphas", False), kwargs.pop("return_lora_metadata", False)
        strict = kwargs.pop("strict", True)
        with naming_files(pretrained_model_name_or_path_or_dict):
            adapter = read_source(pretrained_model_name_or_path_or_dict, None, None, strict, **kwargs)
            adapter.metadata.clear()
            entries, _ = write_lora(adapter, lora_layout("diffusers"), strict)
            tensors = materialize(entries)
        alphas = {key: float(tensors.pop(key)) for key in list(tensors) if key.endswith(".alpha")}
        if not with_alphas:
            tensors.update(alphas)  # type: ignore[arg-type]
        outputs = (tensors, *([alphas] if with_alphas else []), *([None] if with_metadata else []))
        return outputs if len(outputs) > 1 else tensors

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: LoRASource,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Loads a LoRA of any layout. It becomes the active adapter; [`set_adapters`] activates several.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
                A file, a folder, a repository of the Hub, or the tensors.
            adapter_name (`str`, *optional*):
                The adapter's name; `default_0`, `default_1`, ... without.
            hotswap (`bool`, *optional*, defaults to `False`):
                Whether to replace the weights of an adapter of this name in place.
            kwargs:
                `weight_name` and the other arguments for the Hub; `metadata`, `adapter_config` and `strict` as for
                [`convert_lora`], `default_alpha` too; `low_cpu_mem_usage`.

        Raises:
            LoRAError: If the file cannot be read, fits no layer, or the name is taken.
            TypeError: If there are unknown arguments.
        """
        load_into(self, pretrained_model_name_or_path_or_dict, adapter_name, hotswap=hotswap, **kwargs)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        transformer_lora_layers: Any = None,
        text_encoder_lora_layers: Any = None,
        **kwargs: Any,
    ) -> None:
        """
        Saves LoRAs as diffusers does.

        Args:
            save_directory (`str` or `os.PathLike`):
                A folder.
            transformer_lora_layers, text_encoder_lora_layers (`dict[str, torch.Tensor]`, *optional*):
                The factors, as `peft.get_peft_model_state_dict` gives them.
            kwargs:
                As for [`~diffusers.loaders.FluxLoraLoaderMixin.save_lora_weights`].

        Raises:
            LoRAError: If there is something else than factors: LoKr, DoRA, dense deltas and timestep LoRAs are no
                LoRAs that diffusers' layout could hold.
        """
        for layers in (transformer_lora_layers, text_encoder_lora_layers):
            check_plain(layers.state_dict() if isinstance(layers, torch.nn.Module) else layers or {})
        super().save_lora_weights(save_directory, transformer_lora_layers, text_encoder_lora_layers, **kwargs)

    def unload_lora_weights(self, reset_to_overwritten_params: bool = True) -> None:
        """
        Takes all LoRAs out; the weights are as before, to the bit.

        Args:
            reset_to_overwritten_params (`bool`, *optional*, defaults to `True`):
                Whether an `x_embedder` that a control LoRA widened is narrowed again. diffusers keeps it by default.
        """
        if not reset_to_overwritten_params:
            self.transformer._overwritten_params = None
        unload_lora(self)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """
        Takes adapters out.

        Args:
            adapter_names (`str` or `Sequence[str]`): Their names.

        Raises:
            LoRAError: If there is none of a name, or if some of several are fused.
        """
        unload_lora(self, adapter_names)

    @staticmethod
    def write_lora_layers(
        state_dict: dict[str, torch.Tensor],
        save_directory: str | os.PathLike[str],
        is_main_process: bool,
        weight_name: str | None,
        save_function: Any,
        safe_serialization: bool,
        lora_adapter_metadata: dict[str, Any] | None = None,
    ) -> None:
        """
        Writes a LoRA as diffusers does, whole or not at all. It is what [`save_lora_weights`] calls.

        Args:
            state_dict (`dict[str, torch.Tensor]`):
                The factors.
            save_directory (`str` or `os.PathLike`):
                A folder, which is made if there is none.
            is_main_process, weight_name, save_function, safe_serialization, lora_adapter_metadata:
                As for diffusers' method. A `save_function` writes where it is told to, without a temporary file.

        Raises:
            LoRAError: If the folder or the file cannot be written; the message names it.
        """
        name = weight_name or (LORA_WEIGHT_NAME_SAFE if safe_serialization else LORA_WEIGHT_NAME)
        target = Path(save_directory) / name
        rest = (save_function, safe_serialization, lora_adapter_metadata)
        try:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            if save_function is not None:
                FluxLoraLoaderMixin.write_lora_layers(state_dict, save_directory, is_main_process, name, *rest)
                return
            with written_at_once(target) as temporary:
                FluxLoraLoaderMixin.write_lora_layers(state_dict, temporary.parent, is_main_process, name, *rest)
        # Writers of pickles raise a RuntimeError on a full disk, and that of safetensors on memory that is shared.
        except (OSError, RuntimeError) as error:
            raise LoRAError(f"The LoRA could not be saved: {error}", target) from error

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The adapters of every model, those that patch norms alone included."""
        found = super().get_list_adapters()
        for component, model in lora_models(self).items():
            names = [name for name in patched_adapters(model) if name not in found.get(component, [])]
            if names:
                found[component] = [*found.get(component, []), *names]
        return found

    def set_adapters(
        self, adapter_names: str | list[str], adapter_weights: float | dict[str, Any] | list[Any] | None = None
    ) -> None:
        """
        Makes adapters the active ones, with weights.

        Args:
            adapter_names (`str` or `list[str]`):
                Their names.
            adapter_weights (`float`, `dict` or a list of them, *optional*):
                A weight for each, or one for each model (`{"transformer": 0.5, "text_encoder": 1.0}`), or one for each
                kind of block; 1 by default.

        Raises:
            ValueError: If there is no adapter of a name, or the numbers of names and weights differ.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = adapter_weights if isinstance(adapter_weights, list) else [adapter_weights] * len(names)
        models = lora_models(self)
        layered = {name for model in models.values() for name in getattr(model, "peft_config", {})}
        kept = [index for index, name in enumerate(names) if name in layered or name not in _patched(models)]
        if kept or not names:
            super().set_adapters(
                [names[i] for i in kept], [given[i] for i in kept] if len(given) == len(names) else given
            )
        with self._patching(models):
            for component, model in models.items():
                apply_patches(model, {name: _weight(weight, component) for name, weight in zip(names, given)})

    def disable_lora(self) -> None:
        """Switches all LoRAs off."""
        models = lora_models(self)
        if any(getattr(model, "peft_config", None) for model in models.values()):
            super().disable_lora()
        with self._patching(models):
            for model in models.values():
                apply_patches(model, {}, remember=False)

    def enable_lora(self) -> None:
        """Switches LoRAs that were switched off on again."""
        models = lora_models(self)
        if any(getattr(model, "peft_config", None) for model in models.values()):
            super().enable_lora()
        with self._patching(models):
            for model in models.values():
                apply_patches(model, patch_weights(model))

    def _patching(self, models: Mapping[str, torch.nn.Module]) -> AbstractContextManager[None]:
        """Parameters that offloading has taken away cannot be patched."""
        return offloading_suspended(self) if _patched(models) else nullcontext()


def _patched(models: Mapping[str, torch.nn.Module]) -> set[str]:
    return {name for model in models.values() for name in patched_adapters(model)}


def _weight(weight: Any, component: str) -> float:
    """The weight of an adapter's patches of a model; weights of single blocks do not concern them."""
    if isinstance(weight, dict):
        weight = weight.get(component)
    return float(weight) if isinstance(weight, int | float) else 1.0
