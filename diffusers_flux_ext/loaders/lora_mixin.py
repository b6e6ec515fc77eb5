"""LoRA loading of the pipelines: diffusers' formats, and those that diffusers does not read."""

from typing import Any

import torch
from diffusers.loaders import FluxLoraLoaderMixin

from .._compat import fetch_lora_state_dict
from .lora_conversion import convert_diffsynth_lora, is_diffsynth_lora


class FluxExtLoraLoaderMixin(FluxLoraLoaderMixin):
    """Adds DiffSynth's layout, in which EliGen's LoRA is published, to the LoRA files that diffusers loads."""

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | dict[str, torch.Tensor], **kwargs: Any
    ) -> Any:
        """Read a LoRA in diffusers' layout, converting it where needed.

        Args:
            pretrained_model_name_or_path_or_dict (`str` or `dict[str, torch.Tensor]`):
                Repository, folder, file or state dict.
            kwargs: As for [`~diffusers.loaders.FluxLoraLoaderMixin.lora_state_dict`].

        Returns:
            `dict`, or a `tuple` with the alphas and the metadata when `return_alphas` or `return_lora_metadata`.

        Raises:
            ValueError: if the file is in DiffSynth's layout and holds keys that are not understood.
        """
        state_dict, metadata = fetch_lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        if not is_diffsynth_lora(state_dict):
            loaded = super().lora_state_dict(state_dict, **kwargs)
            # A state dict has no header, so the file's metadata is put back where diffusers returns it.
            return (*loaded[:-1], metadata) if kwargs.get("return_lora_metadata") else loaded
        converted = convert_diffsynth_lora(state_dict)
        alphas = {key: value for key, value in converted.items() if key.endswith(".alpha")}
        tensors = {key: value for key, value in converted.items() if key not in alphas}
        return cls._prepare_outputs(
            tensors,
            metadata=None,
            alphas=alphas,
            return_alphas=kwargs.get("return_alphas", False),
            return_metadata=kwargs.get("return_lora_metadata", False),
        )
