"""LoRAs by the methods of DiffSynth-Studio's pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import logging

from ..lora.loading.load import load_lora, unload_lora
from ..lora.loading.timestep import load_timestep_lora
from ..methods.lora_fusion.gates import FluxLoRAFusion
from ..methods.lora_fusion.hook import enable_lora_fusion
from .handles import ModuleHandle
from .model_config import ModelConfig


logger = logging.get_logger(__name__)


class LoRAMixin:
    """The methods; `_loras` holds the names of the LoRAs that `clear_lora` removes."""

    native: Any
    lora_patcher: FluxLoRAFusion | None
    _loras: list[str]

    def load_lora(
        self,
        module: ModuleHandle,
        lora_config: ModelConfig | str | None = None,
        alpha: float = 1,
        hotload: bool | None = None,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        verbose: int = 1,
    ) -> None:
        """Load a LoRA of any format beside those that are loaded.

        Args:
            module (`ModuleHandle`): `pipe.dit`. Parts of the LoRA for the text encoders are loaded, too.
            lora_config (`ModelConfig` or `str`, *optional*): The file.
            alpha (`float`, defaults to 1): The LoRA's weight.
            hotload (`bool`, *optional*):
                `False` keeps it in [`~FluxImagePipeline.clear_lora`], as the reference fuses it then. All LoRAs are
                adapters here, whatever is given.
            state_dict (`Mapping[str, torch.Tensor]`, *optional*): Tensors in place of a file.
            verbose (`int`, defaults to 1): As in the reference; it is logged here.

        Raises:
            LoRAError: if the LoRA cannot be read, or fits no layer.
            TypeError: if `module` is something else, or no LoRA is given.
        """
        if not isinstance(module, ModuleHandle) or module.native != "transformer":
            named = f"`pipe.{module.name}`" if isinstance(module, ModuleHandle) else f"a {type(module).__name__}"
            raise TypeError(f"`module` is {named}; LoRAs are loaded into `pipe.dit`, text encoders' parts included.")
        source = lora_source(lora_config) if state_dict is None else dict(state_dict)
        name = load_lora(self.native, source, weight=alpha)
        if hotload is not False:
            self._loras.append(name)
        if verbose >= 1:
            logger.info(f"The LoRA is loaded as {name!r}; `pipe.clear_lora()` removes it.")

    def clear_lora(self, verbose: int = 1) -> None:
        """Remove the LoRAs that [`~FluxImagePipeline.load_lora`] loaded; timestep LoRAs stay.

        Args:
            verbose (`int`, defaults to 1): As in the reference; it is logged here.
        """
        names, self._loras = self._loras, []
        if names:
            unload_lora(self.native, names)
        if verbose >= 1:
            logger.info(f"{len(names)} LoRAs are removed.")

    def load_timestep_lora(self, lora_config: ModelConfig | str, alpha: float = 2.0) -> None:
        """Load a LoRA that depends on the timestep (MultiAlign).

        Args:
            lora_config (`ModelConfig` or `str`): The file.
            alpha (`float`, defaults to 2.0): Its strength.

        Raises:
            LoRAError: if it is not a timestep LoRA.
        """
        load_timestep_lora(self.native, lora_source(lora_config), strength=alpha)

    def enable_lora_merger(self) -> None:
        """Weigh LoRAs by the gates of LoRA-Fusion, with or without VRAM management.

        Raises:
            ValueError: if LoRA-Fusion is not among the files.
        """
        if self.lora_patcher is None:
            raise ValueError("`enable_lora_merger` needs `model.safetensors` of LoRAFusion among `model_configs`.")
        enable_lora_fusion(self.native.transformer, self.lora_patcher)


def lora_source(config: ModelConfig | str | None) -> Any:
    """Return what [`~diffusers_flux_ext.load_lora`] reads for a file or a config, downloaded if it has to be.

    Args:
        config (`ModelConfig` or `str`, *optional*): The file.

    Returns:
        `str`, `list[str]` or `Mapping[str, torch.Tensor]`

    Raises:
        TypeError: if there is none.
    """
    if config is None:
        raise TypeError("`lora_config` is None; give a file, a `ModelConfig`, or `state_dict`.")
    if not isinstance(config, ModelConfig):
        return config
    if config.state_dict is not None:
        return config.state_dict
    config.download_if_necessary()
    return config.path
