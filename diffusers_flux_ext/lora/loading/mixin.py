"""LoRA loading of the pipelines: every layout, every part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
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
from ..reading.hub import check_hub_arguments
from ..reading.read import read
from ..reading.scale import PEFT_HEADER
from ..writing.patterns import stable_metadata
from ..writing.write import write_lora
from .deltas import check_fusible, check_plain, has_fused
from .load import COMPONENTS, add_adapter, lora_models, unload_lora
from .patches import apply_patches, patch_weights, patched_adapters
from .weights import read_weights


_READ_ARGUMENTS = ("metadata", "adapter_config", "default_alpha", "strict")


class FluxExtLoraLoaderMixin(FluxLoraLoaderMixin):
    """LoRA loading for pipelines: files of any trainer, with all of their parts, T5's included.

    The methods do what those of diffusers do; see [`load_lora`] for what is loaded.
    """

    _lora_loadable_modules: ClassVar[list[str]] = list(COMPONENTS)

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor], **kwargs: Any
    ) -> Any:
        """Read a LoRA into diffusers' layout.

        Args:
            pretrained_model_name_or_path_or_dict (`str` or `dict[str, torch.Tensor]`):
                Repository, folder, file or state dict.
            kwargs:
                As for [`~diffusers.loaders.FluxLoraLoaderMixin.lora_state_dict`], and `strict`.

        Returns:
            `dict`, or a `tuple` with the alphas and the metadata when `return_alphas` or `return_lora_metadata`. The
            metadata is PEFT's config of each model, with keys such as `"transformer.r"`, if the file has it and it
            gives the scale of every layer; it then replaces the alphas. Otherwise it is `None`.

        Raises:
            LoRAError: If it cannot be read.
        """
        with_alphas, with_metadata = kwargs.pop("return_alphas", False), kwargs.pop("return_lora_metadata", False)
        strict = kwargs.pop("strict", True)
        with naming_files(pretrained_model_name_or_path_or_dict):
            adapter = read(pretrained_model_name_or_path_or_dict, strict=strict, hub=kwargs)
            if not with_metadata:
                adapter.metadata.clear()
            entries, header = write_lora(adapter, lora_layout("diffusers"), strict)
            tensors = materialize(entries)
        metadata = json.loads(header[PEFT_HEADER]) if PEFT_HEADER in header else None
        alphas = {key: float(tensors.pop(key)) for key in list(tensors) if key.endswith(".alpha")}
        if not with_alphas:
            tensors.update(alphas)  # type: ignore[arg-type]
        outputs = (tensors, *([alphas] if with_alphas else []), *([metadata] if with_metadata else []))
        return outputs if len(outputs) > 1 else tensors

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: LoRASource,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA of any layout. It becomes the active adapter; [`set_adapters`] activates several.

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
        source = pretrained_model_name_or_path_or_dict
        low_cpu_mem_usage = kwargs.pop("low_cpu_mem_usage", True)
        given = {name: kwargs.pop(name) for name in _READ_ARGUMENTS if name in kwargs}
        check_hub_arguments(kwargs)
        with naming_files(source):
            file = read(source, hub=kwargs, **given)
            add_adapter(
                self, file, adapter_name, beside=False, hotswap=hotswap, low_cpu_mem_usage=low_cpu_mem_usage
            )  # fmt: skip

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        transformer_lora_layers: Any = None,
        text_encoder_lora_layers: Any = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_layers: Any = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Save LoRAs as diffusers does, and T5's with them.

        Args:
            save_directory (`str` or `os.PathLike`):
                A folder.
            transformer_lora_layers, text_encoder_lora_layers, text_encoder_2_lora_layers
                (`dict[str, torch.Tensor]` or `torch.nn.Module`, *optional*):
                The factors, as `peft.get_peft_model_state_dict` gives them. At least one model's.
            is_main_process, weight_name, save_function, safe_serialization:
                As for [`~diffusers.loaders.FluxLoraLoaderMixin.save_lora_weights`].
            transformer_lora_adapter_metadata, text_encoder_lora_adapter_metadata, text_encoder_2_lora_adapter_metadata
                (`dict[str, Any]`, *optional*):
                The `LoraConfig` of each model as a dict, which holds the scales. Patterns whose order matters are
                written as one for each layer.

        Raises:
            LoRAError: If there is something other than factors: diffusers' layout cannot hold LoKr, DoRA,
                dense deltas and timestep LoRAs. If metadata is not a dict.
            ValueError: If there are no layers at all.
        """
        given = {
            "transformer": (transformer_lora_layers, transformer_lora_adapter_metadata),
            "text_encoder": (text_encoder_lora_layers, text_encoder_lora_adapter_metadata),
            "text_encoder_2": (text_encoder_2_lora_layers, text_encoder_2_lora_adapter_metadata),
        }
        layers, metadata = {}, {}
        for component, (model, config) in given.items():
            if not model:
                continue
            layers[component] = model.state_dict() if isinstance(model, torch.nn.Module) else model
            check_plain(layers[component])
            metadata[component] = stable_metadata(component, config, layers[component])
        if not layers:
            names = [f"{component}_lora_layers" for component in given]
            raise ValueError(f"There is nothing to save: pass at least one of {names}.")
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers=layers,
            lora_metadata=metadata,
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
        )

    def fuse_lora(
        self,
        components: Sequence[str] = ("transformer",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add LoRAs to the weights, as diffusers does.

        Args:
            components (`list[str]`, *optional*, defaults to `["transformer"]`):
                The models whose LoRAs are fused: `"transformer"`, `"text_encoder"`, `"text_encoder_2"`.
            lora_scale (`float`, *optional*, defaults to 1.0):
                Factor of the updates.
            safe_fusing (`bool`, *optional*, defaults to `False`):
                Whether to check for NaN first.
            adapter_names (`list[str]`, *optional*):
                The adapters; all active ones by default.
            kwargs:
                As for [`~diffusers.loaders.FluxLoraLoaderMixin.fuse_lora`].

        Raises:
            LoRAError: If the weights are quantised (bitsandbytes, GGUF, quanto, torchao), stored in 8 bits, or not in
                memory, so that the sum would be rounded or lost. Unfused, the LoRAs work there, too.
            ValueError: If a component does not exist.
        """
        with offloading_suspended(self, weights=True):
            check_fusible({name: model for name, model in lora_models(self).items() if name in components})
            super().fuse_lora(list(components), lora_scale, safe_fusing, adapter_names, **kwargs)

    def unfuse_lora(self, components: Sequence[str] = COMPONENTS, **kwargs: Any) -> None:
        """Subtract fused LoRAs again, with the rounding of that subtraction.

        Args:
            components (`list[str]`, *optional*):
                The models; all by default.
            kwargs:
                As for [`~diffusers.loaders.FluxLoraLoaderMixin.unfuse_lora`].

        Raises:
            ValueError: If a component does not exist.
        """
        models = lora_models(self)
        # PEFT warns about every layer where nothing is fused.
        fused = [name for name in components if name not in models or has_fused(models[name])]
        with offloading_suspended(self, weights=True):
            super().unfuse_lora(fused or list(components), **kwargs)

    def unload_lora_weights(self, reset_to_overwritten_params: bool = True) -> None:
        """Remove all LoRAs; the weights are as before, bit for bit.

        Args:
            reset_to_overwritten_params (`bool`, *optional*, defaults to `True`):
                Whether an `x_embedder` that a control LoRA widened is narrowed again. diffusers keeps it by default.
        """
        if not reset_to_overwritten_params:
            self.transformer._overwritten_params = None
        unload_lora(self)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove adapters.

        Args:
            adapter_names (`str` or `Sequence[str]`): Their names.

        Raises:
            LoRAError: If an adapter does not exist, or if some of several are fused.
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
        """Write a LoRA as diffusers does, whole or not at all. [`save_lora_weights`] calls it.

        Args:
            state_dict (`dict[str, torch.Tensor]`):
                The factors.
            save_directory (`str` or `os.PathLike`):
                A folder, which is created if necessary.
            is_main_process, weight_name, save_function, safe_serialization, lora_adapter_metadata:
                As for diffusers' method. A `save_function` writes to the given path, without a temporary file.

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
        """Return the adapters of every model, those that patch norms alone included."""
        found = super().get_list_adapters()
        for component, model in lora_models(self).items():
            names = [name for name in patched_adapters(model) if name not in found.get(component, [])]
            if names:
                found[component] = [*found.get(component, []), *names]
        return found

    def set_adapters(
        self, adapter_names: str | list[str], adapter_weights: float | dict[str, Any] | list[Any] | None = None
    ) -> None:
        """Activate adapters, with weights.

        Args:
            adapter_names (`str` or `list[str]`):
                Their names.
            adapter_weights (`float`, `dict` or a list of them, *optional*):
                A weight for each, or one for each model (`{"transformer": 0.5, "text_encoder": 1.0}`), or one for each
                part of a layer's name (`{"transformer": {"single_transformer_blocks": 0.5}}`); 1 by default. A single
                dict holds for every adapter. Names of models and layers that do not exist are reported in a warning.

        Raises:
            ValueError: If an adapter does not exist, the numbers of names and weights differ, or a weight is not a
                finite number.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        models = lora_models(self)
        given = read_weights(names, adapter_weights, models)
        layered = {name for model in models.values() for name in getattr(model, "peft_config", {})}
        kept = [index for index, name in enumerate(names) if name in layered or name not in _patched(models)]
        if kept or not names:
            super().set_adapters([names[i] for i in kept], [given[i] for i in kept])
        with self._patching(models):
            for component, model in models.items():
                apply_patches(model, {name: _weight(weight, component) for name, weight in zip(names, given)})

    def disable_lora(self) -> None:
        """Switch all LoRAs off."""
        models = lora_models(self)
        if any(getattr(model, "peft_config", None) for model in models.values()):
            super().disable_lora()
        with self._patching(models):
            for model in models.values():
                apply_patches(model, {}, remember=False)

    def enable_lora(self) -> None:
        """Switch LoRAs that were switched off on again."""
        models = lora_models(self)
        if any(getattr(model, "peft_config", None) for model in models.values()):
            super().enable_lora()
        with self._patching(models):
            for model in models.values():
                apply_patches(model, patch_weights(model))

    def _patching(self, models: Mapping[str, torch.nn.Module]) -> AbstractContextManager[None]:
        """Hold offloading off, since parameters that it has moved away cannot be patched."""
        return offloading_suspended(self, weights=True) if _patched(models) else nullcontext()


def _patched(models: Mapping[str, torch.nn.Module]) -> set[str]:
    return {name for model in models.values() for name in patched_adapters(model)}


def _weight(weight: Any, component: str) -> float:
    """Return the weight of an adapter's patches of a model; weights of single blocks do not concern them."""
    if isinstance(weight, dict):
        weight = weight.get(component)
    return float(weight) if isinstance(weight, int | float) else 1.0
