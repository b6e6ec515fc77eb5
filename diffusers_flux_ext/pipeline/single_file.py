"""Pipelines from one file as it circulates: the transformer alone, or with text encoders and the VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from .._compat import component_names
from ..checkpoints.all_in_one import models_in
from ..checkpoints.hub import HUB_ARGUMENTS, local_file
from ..checkpoints.messages import naming
from ..checkpoints.reading import read_json
from ..checkpoints.tensors import COMPUTED, open_tensors
from ..checkpoints.text_encoders import read_clip, read_t5
from ..models.autoencoder_kl_flux import AutoencoderKLFlux
from ..models.transformer_flux_ext import FluxExtTransformer2DModel


DEFAULT_CONFIG = "black-forest-labs/FLUX.1-dev"
"""Where tokenizers come from if neither they nor a folder are given, unless the Hub is switched off."""

FEWEST_TOKENS = 16
# What holds weights, with the class that loads it from a folder, and what each is called to a user.
MODELS: dict[str, Any] = {
    "transformer": FluxExtTransformer2DModel,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
    "vae": AutoencoderKLFlux,
}
TOKENIZERS: dict[str, Any] = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5TokenizerFast}
# The shift of FLUX.1's models with guidance, and of those without (schnell).
SCHEDULERS: dict[bool, dict[str, Any]] = {
    True: {"shift": 3.0, "use_dynamic_shifting": True},
    False: {"shift": 1.0, "use_dynamic_shifting": False},
}


class SingleFilePipelineMixin:
    """Gives a pipeline `from_single_file`, which needs no network where all parts are at hand."""

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        config: str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        quantization_config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Make a pipeline from one file and what is given beside it.

        The file may hold the transformer in any layout, text encoders and the VAE: ComfyUI's checkpoints with the
        prefixes `model.diffusion_model.`, `text_encoders.clip_l.transformer.`, `text_encoders.t5xxl.transformer.` and
        `vae.`, with weights in 16 bits or in 8 with scales; files of the transformer alone; and GGUF files. What it
        lacks is taken from the arguments, then from `config`.

        Args:
            pretrained_model_link_or_path (`str` or `Path`):
                A safetensors or GGUF file, or a link to one on the Hub.
            config (`str` or `Path`, *optional*):
                A folder of a FLUX.1 pipeline, for tokenizers, the scheduler's config, the models' configs and models
                that are not in the file; or a repository, for tokenizers. Without it, sizes are inferred from the
                file, the scheduler is FLUX.1's, and tokenizers that are not given come from the cache or the Hub.
            torch_dtype (`torch.dtype`, *optional*):
                Data type of all models; by default that of the file, or bfloat16 where it has weights in 8 bits.
            dtype (`torch.dtype`, *optional*): The newer name of `torch_dtype`.
            quantization_config (`diffusers.QuantizationConfigMixin`, *optional*):
                Quantise the transformer while loading; GGUF files need `GGUFQuantizationConfig(compute_dtype=...)`.
            kwargs:
                Components of the pipeline by name, such as `text_encoder_2=...`; and `cache_dir`, `force_download`,
                `local_files_only`, `token` and `revision` for what is fetched.

        Returns:
            `DiffusionPipeline`: an instance of this class.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If components are missing, all of which the message names; if the file is broken.
            TypeError: If there is no such component.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        components, options = component_names(cls)
        unknown = sorted(kwargs.keys() - components - options)
        if unknown:
            raise TypeError(f"{cls.__name__} has no components {unknown}; they are {sorted(components)}.")
        required = components - set(getattr(cls, "_optional_components", ()))
        source = local_file(pretrained_model_link_or_path, hub)
        parts = _Parts(source, config, dtype or torch_dtype, quantization_config, hub)
        with naming(source):
            made = parts.make([name for name in sorted(required) if name not in kwargs])
        return cls(**{**made, **kwargs})


class _Parts:
    """What a pipeline is made from: a file, and a folder or repository beside it."""

    def __init__(
        self,
        source: str | Path,
        config: str | Path | None,
        dtype: torch.dtype | None,
        quantization: Any,
        hub: Mapping[str, Any],
    ) -> None:
        self.source, self.config, self.quantization = source, config, quantization
        # The revision is that of the file, in another repository.
        self.hub = {name: value for name, value in hub.items() if name != "revision"}
        with open_tensors(source) as tensors:
            self.found = models_in(tensors.shapes)
            stored = COMPUTED if tensors.dtype is not None else None
            self.dtype = dtype or getattr(quantization, "compute_dtype", None) or stored

    def make(self, names: list[str]) -> dict[str, Any]:
        """Make components; those that are missing are named before weights are read."""
        missing = [name for name in names if not self._is_at_hand(name)]
        tokenizers = {} if missing else {name: self._tokenizer(name) for name in names if name in TOKENIZERS}
        missing += [name for name, made in tokenizers.items() if made is None]
        if missing:
            found = ", ".join(sorted(self.found)) or "none of a FLUX.1 pipeline's models"
            absent = self.config is not None and not Path(self.config).is_dir()
            beside = f", and there is no folder `{self.config}`" if absent else ""
            raise ValueError(
                f"{', '.join(f'`{name}`' for name in missing)} missing: the file holds {found}{beside}. Pass them by "
                "name, or `config=` with the folder of a FLUX.1 pipeline that has them."
            )
        models = {name: self._model(name) for name in names if name in MODELS}
        made = {**tokenizers, **models}
        if "scheduler" in names:
            made["scheduler"] = self._scheduler(models.get("transformer"))
        return made

    def _is_at_hand(self, name: str) -> bool:
        if name in MODELS:
            return name in self.found or self._folder(name) is not None
        return name in TOKENIZERS or name == "scheduler"

    def _folder(self, name: str) -> Path | None:
        """Return the local folder of a component beside the file, if there is one."""
        folder = None if self.config is None else Path(self.config, name)
        return folder if folder is not None and folder.is_dir() else None

    def _settings(self, name: str) -> dict[str, Any]:
        """Return the entries of a component's config beside the file."""
        folder = self._folder(name)
        path = None if folder is None else folder / "config.json"
        loaded = read_json(path) if path is not None and path.is_file() else {}
        return {key: value for key, value in loaded.items() if not key.startswith("_")}

    def _model(self, name: str) -> Any:
        placed: dict[str, Any] = {"torch_dtype": self.dtype}
        if name not in self.found:
            return MODELS[name].from_pretrained(self._folder(name), dtype=self.dtype or torch.float32)
        if name == "transformer":
            placed["quantization_config"] = self.quantization
        read: Callable[..., Any] = {
            "transformer": FluxExtTransformer2DModel.from_single_file,
            "vae": AutoencoderKLFlux.from_single_file,
            "text_encoder": read_clip,
            "text_encoder_2": read_t5,
        }[name]
        return read(self.source, **placed, **self._settings(name))

    def _tokenizer(self, name: str) -> Any:
        folder = self._folder(name)
        try:
            if folder is not None:
                made = TOKENIZERS[name].from_pretrained(folder)
            else:
                repository = DEFAULT_CONFIG if self.config is None else str(self.config)
                made = TOKENIZERS[name].from_pretrained(repository, subfolder=name, **self.hub)
        # transformers raises errors of several kinds for repositories that it cannot reach.
        except (OSError, ValueError, TypeError):
            return None
        # Or it makes a tokenizer of special tokens alone.
        return made if len(made) - len(made.all_special_tokens) > FEWEST_TOKENS else None

    def _scheduler(self, transformer: Any) -> Any:
        folder = self._folder("scheduler")
        if folder is not None:
            return FlowMatchEulerDiscreteScheduler.from_pretrained(folder)
        guided = transformer is None or bool(transformer.config.guidance_embeds)
        return FlowMatchEulerDiscreteScheduler(**SCHEDULERS[guided])
