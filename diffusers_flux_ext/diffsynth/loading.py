"""From files to the components of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet_flux import FluxMultiControlNetModel
from diffusers.utils import logging

from ..checkpoints.messages import naming
from ..methods.attribute_control.encoder import AttributeValueEncoder
from ..methods.control.model import FluxExtControlNetModel
from ..methods.infinite_you.projector import InfiniteYouImageProjector
from ..methods.ip_adapter.model import FluxIPAdapter
from ..methods.lora_encoder.model import FluxLoRAEncoder
from ..methods.lora_fusion.gates import FluxLoRAFusion
from ..methods.nexus_gen.adapter import NexusGenAdapter
from ..methods.nexus_gen.decoder import load_nexus_gen_decoder
from ..methods.nexus_gen.language_model import NexusGenModel
from ..methods.redux.checkpoint import load_redux_embedder
from ..methods.step1x_edit.connector import Step1XConnector
from ..models.autoencoder_kl_flux import AutoencoderKLFlux
from ..models.text_encoders import load_clip_text, load_qwen_vl, load_siglip, load_t5_encoder
from ..models.transformer_flux_ext import FluxExtTransformer2DModel
from ..pipeline.conditioned import FluxConditionedPipeline
from .files import Part, recognise
from .inputs import load_state_dict
from .model_config import ModelConfig


logger = logging.get_logger(__name__)

Components = dict[str, Any]
"""Models by the names of the pipeline's components."""

INDEX = "model_index.json"
FOLDER = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_SEVERAL = ("controlnet", "value_encoder", "vision")


def _one(component: str, load: Callable[..., Any]) -> Callable[[Part, torch.dtype], Components]:
    return lambda part, dtype: {component: load(part.state_dict, torch_dtype=dtype)}


def _step1x(part: Part, dtype: torch.dtype) -> Components:
    weights = part.state_dict
    return {
        "connector": Step1XConnector.from_single_file(weights, torch_dtype=dtype),
        "transformer": FluxExtTransformer2DModel.from_single_file(weights, torch_dtype=dtype),
    }


def _nexus_decoder(part: Part, dtype: torch.dtype) -> Components:
    transformer, adapter = load_nexus_gen_decoder(part.state_dict, torch_dtype=dtype)
    name = "generation_adapter" if isinstance(adapter, NexusGenAdapter) else "editing_adapter"
    return {name: adapter, "transformer": transformer}


@dataclass(frozen=True)
class ValueFile:
    """The file of one attribute, which becomes a part of one encoder when all are there.

    Attributes:
        attribute (`str`): The file's name without its suffix.
        state_dict (`Mapping[str, Any]`): Its tensors.
        dtype (`torch.dtype`): Data type of the encoder.
    """

    attribute: str
    state_dict: Mapping[str, Any]
    dtype: torch.dtype

    def model(self, *others: ValueFile) -> AttributeValueEncoder:
        """Make the encoder of this attribute and of those of other files."""
        sources: dict[str, Any] = {}
        for each in (self, *others):
            name = each.attribute if each.attribute not in sources else f"{each.attribute}_{len(sources)}"
            sources[name] = each.state_dict
        return AttributeValueEncoder.from_single_file(sources, torch_dtype=self.dtype)


@dataclass(frozen=True)
class VisionFile:
    """SigLIP's vision model, and whether it was part of a whole SigLIP."""

    model: Any
    is_whole: bool


def _values(part: Part, dtype: torch.dtype) -> Components:
    return {"value_encoder": ValueFile(Path(part.source).stem, part.state_dict, dtype)}


def _siglip(part: Part, dtype: torch.dtype) -> Components:
    whole = any(key.startswith("text_model.") for key in part.state_dict)
    return {"vision": VisionFile(load_siglip(part.state_dict, torch_dtype=dtype), whole)}


LOADERS: Mapping[str, Callable[[Part, torch.dtype], Components]] = {
    "ipadapter": _one("ip_adapter", FluxIPAdapter.from_single_file),
    "image_proj_model": _one("image_projector", InfiniteYouImageProjector.from_single_file),
    "controlnet": _one("controlnet", FluxExtControlNetModel.from_single_file),
    "lora_encoder": _one("lora_encoder", FluxLoRAEncoder.from_single_file),
    "lora_patcher": _one("lora_fusion", FluxLoRAFusion.from_single_file),
    "value_controller": _values,
    "flux_redux_image_embedder": _one("image_embedder", load_redux_embedder),
    "nexus_gen": lambda part, dtype: {"mllm": _nexus_model(part, dtype)},
    "qwenvl": _one("mllm", load_qwen_vl),
    "nexus_decoder": _nexus_decoder,
    "step1x": _step1x,
    "dit": _one("transformer", FluxExtTransformer2DModel.from_single_file),
    "siglip": _siglip,
    "text_encoder_1": _one("text_encoder", load_clip_text),
    "text_encoder_2": _one("text_encoder_2", load_t5_encoder),
    "vae": _one("vae", AutoencoderKLFlux.from_single_file),
}
"""By kind of file, what makes the pipeline's components of it."""


def _nexus_model(part: Part, dtype: torch.dtype) -> Any:
    number = part.state_dict["image_prefill_embeds.weight"].shape[0]
    return load_qwen_vl(part.state_dict, torch_dtype=dtype, model_class=NexusGenModel, num_image_tokens=number)


@dataclass
class Loaded:
    """What the files hold.

    Attributes:
        components (`dict[str, Any]`): Models by the names of the pipeline's components.
        configs (`dict[str, ModelConfig]`):
            Where each came from; those of which there may be several are numbered, as in `"controlnet.0"`.
    """

    components: Components = field(default_factory=dict)
    configs: dict[str, ModelConfig] = field(default_factory=dict)


def load_parts(state_dict: Mapping[str, Any], source: str, dtype: torch.dtype) -> list[Components]:
    """Load the models of one file.

    Args:
        state_dict (`Mapping[str, Any]`): Its tensors.
        source (`str`): The file, for errors.
        dtype (`torch.dtype`): Data type of the models.

    Returns:
        `list[dict[str, Any]]`: for each part of the file, models by component.

    Raises:
        ValueError: if it holds something else, or tensors are missing or left over.
    """
    with naming(source):
        return [LOADERS[part.kind.name](part, dtype) for part in recognise(state_dict, source)]


def load_models(configs: Sequence[ModelConfig], dtype: torch.dtype) -> Loaded:
    """Load all files of a pipeline.

    Args:
        configs (`Sequence[ModelConfig]`): The files; the order of ControlNets and of values is that of these.
        dtype (`torch.dtype`): Data type of the models, unless a config has another `computation_dtype`.

    Returns:
        `Loaded`

    Raises:
        TypeError: if there is anything but a `ModelConfig`.
        ValueError: if a file is not known or not whole, or a config asks for what does not exist here.
    """
    loaded, several = Loaded(), {name: [] for name in _SEVERAL}  # type: ignore[var-annotated]
    for config in configs:
        _check(config)
        source, parts = _parts(config, _dtype(config, dtype))
        for components in parts:
            for name, model in components.items():
                if name in several:
                    loaded.configs[f"{name}.{len(several[name])}"] = config
                    several[name].append(model)
                elif name in loaded.components:
                    logger.warning(f"`{source}` holds a second {name}; the first one is used, as in DiffSynth-Studio.")
                else:
                    loaded.components[name], loaded.configs[name] = model, config
    _join(loaded, several)
    return loaded


def _check(config: Any) -> None:
    if not isinstance(config, ModelConfig):
        raise TypeError(
            f"`model_configs` holds a {type(config).__name__}; expected `ModelConfig` of "
            f"`diffusers_flux_ext.diffsynth`. Import it from there, too."
        )
    if config.clear_parameters:
        raise ValueError("`clear_parameters` of ModelConfig drops weights for split training, which is not done here.")
    if config.quantize is not None:
        raise ValueError(
            "`quantize` of ModelConfig is not translated. Quantise the native pipeline: "
            "`FluxExtTransformer2DModel.from_single_file(file, quantization_config=...)`, see docs/migration.md."
        )


def _dtype(config: ModelConfig, dtype: torch.dtype) -> torch.dtype:
    given = config.computation_dtype
    return given if isinstance(given, torch.dtype) else dtype


def _parts(config: ModelConfig, dtype: torch.dtype) -> tuple[str, list[Components]]:
    """Return what a config's file is called, and its models."""
    if config.state_dict is not None:
        name = config.path if isinstance(config.path, str) else config.model_id
        source = name or "`state_dict` of ModelConfig"
        return source, load_parts(config.state_dict, source, dtype)
    config.download_if_necessary()
    if isinstance(config.path, str) and Path(config.path, INDEX).is_file():
        return config.path, [_from_folder(Path(config.path), dtype)]
    files = config.weight_files()
    source = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return source, load_parts(load_state_dict(files), source, dtype)


def _from_folder(folder: Path, dtype: torch.dtype) -> Components:
    """Load the models and tokenizers of a folder of diffusers, whose configs say the sizes."""
    vae = AutoencoderKLFlux.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
    pipe: Any = FluxConditionedPipeline.from_pretrained(folder, vae=vae, torch_dtype=dtype)
    return {name: model for name, model in pipe.components.items() if name in FOLDER and model is not None}


def _join(loaded: Loaded, several: Mapping[str, list[Any]]) -> None:
    """Put ControlNets, values and vision models, of which there may be several, where the pipeline has them."""
    made = loaded.components
    if several["controlnet"]:
        made["controlnet"] = FluxMultiControlNetModel(several["controlnet"])
    if several["value_encoder"]:
        first, *others = several["value_encoder"]
        made["value_encoder"] = first.model(*others)
    if several["vision"]:
        # The IP-Adapter was published with a whole SigLIP, Redux with its vision model; both are the same model.
        made["image_encoder"] = max(several["vision"], key=lambda each: each.is_whole).model
        made["redux_encoder"] = min(several["vision"], key=lambda each: each.is_whole).model


def vram_configs(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Return the fields of VRAM management by the names that a VRAM plan gives the models.

    Args:
        loaded (`Loaded`): The models and where they came from.

    Returns:
        `dict[str, dict[str, Any]]`
    """
    fields: dict[str, dict[str, Any]] = {}
    for name, config in loaded.configs.items():
        component = name.partition(".")[0]
        if component.startswith("tokenizer"):
            continue
        names = {"vision": ("image_encoder", "redux_encoder"), "controlnet": (name,)}.get(component, (component,))
        for each in names:
            fields.setdefault(each, config.vram_config())
    # The gates of LoRAs are no part of a plan.
    fields.pop("lora_fusion", None)
    if loaded.components.get("image_encoder") is loaded.components.get("redux_encoder"):
        # A model with two names is planned once.
        fields.pop("redux_encoder", None)
    return fields
