"""`FluxImagePipeline` with DiffSynth-Studio's signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from PIL import Image
from tqdm import tqdm
from transformers import CLIPTokenizer, T5TokenizerFast

from ..inputs.qwen_vl import QwenVLProcessor
from ..lora.loading.load import load_lora, unload_lora
from ..lora.loading.timestep import load_timestep_lora
from ..methods.infinite_you.insightface import InsightFaceEncoder
from ..methods.lora_fusion.hook import enable_lora_fusion
from ..methods.nexus_gen.language_model import NexusGenModel
from ..offload.budget.apply import vram_budget_of
from ..pipeline.conditioned import FluxConditionedPipeline
from ..schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler
from .handles import HANDLES, ModuleHandle, handle
from .inputs import ControlNetInput
from .loading import load_models
from .model_config import ModelConfig
from .native import TranslatedPipeline
from .older import REFUSED, check_configs, refuse_former
from .running import run_call
from .vram import vram_arguments


logger = logging.get_logger(__name__)

# Pixels of the image that Step1X-Edit's language model sees, as in the reference.
STEP1X_PIXELS = {"min_pixels": 256 * 28 * 28, "max_pixels": 324 * 28 * 28}
INSIGHTFACE = "models/ByteDance/InfiniteYou/supports/insightface"


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class FluxImagePipeline:
    """DiffSynth-Studio's pipeline for FLUX.1, drawn by this package: same signatures, files and images.

    Make it with [`~FluxImagePipeline.from_pretrained`] and call it. `pipe.dit`, `.text_encoder_1`, `.text_encoder_2`,
    `.vae_encoder` and `.vae_decoder` are handles that read weights in the reference's names; `pipe.native` is the
    pipeline of this package that draws, and [`~FluxImagePipeline.to_native`] makes any other of its components.

    Args:
        device (`str` or `torch.device`, *optional*): Where it draws; CUDA where there is one, else the CPU.
        torch_dtype (`torch.dtype`, defaults to `torch.bfloat16`): What it draws in.
    """

    def __init__(self, device: str | torch.device = _device(), torch_dtype: torch.dtype = torch.bfloat16) -> None:
        self.device, self.torch_dtype = device, torch_dtype
        nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer"))
        self.native = TranslatedPipeline(scheduler=FluxFlowMatchScheduler(), **nothing)
        self.infinityou_processor: Any = None
        self._processor: Any = None
        self._loras: list[str] = []

    @staticmethod
    def from_pretrained(
        torch_dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = _device(),
        model_configs: list[ModelConfig] = [],
        tokenizer_1_config: ModelConfig | None = ModelConfig(
            model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="tokenizer/"
        ),
        tokenizer_2_config: ModelConfig | None = ModelConfig(
            model_id="black-forest-labs/FLUX.1-dev", origin_file_pattern="tokenizer_2/"
        ),
        nexus_gen_processor_config: ModelConfig | None = ModelConfig(
            model_id="DiffSynth-Studio/Nexus-GenV2", origin_file_pattern="processor/"
        ),
        step1x_processor_config: ModelConfig | None = ModelConfig(
            model_id="Qwen/Qwen2.5-VL-7B-Instruct", origin_file_pattern=""
        ),
        vram_limit: float | None = None,
    ) -> FluxImagePipeline:
        """Load the models of a pipeline, each recognised by the names of its tensors.

        Args:
            torch_dtype (`torch.dtype`, defaults to `torch.bfloat16`): Data type of all models.
            device (`str` or `torch.device`, *optional*): Where it draws; CUDA where there is one, else the CPU.
            model_configs (`list[ModelConfig]`): The files. ControlNets and values are numbered in this order.
            tokenizer_1_config (`ModelConfig`, *optional*): CLIP's tokenizer; `None` means that no prompt is read.
            tokenizer_2_config (`ModelConfig`, *optional*): T5's tokenizer; `None` means that no prompt is read.
            nexus_gen_processor_config (`ModelConfig`, *optional*):
                Nexus-Gen's processor, read if its language model is among the files.
            step1x_processor_config (`ModelConfig`, *optional*):
                Qwen2.5-VL's processor, read if that model is among the files.
            vram_limit (`float`, *optional*):
                GiB. Read if a config asks for VRAM management, which becomes a VRAM budget.

        Returns:
            `FluxImagePipeline`

        Raises:
            FileNotFoundError: if a file is missing.
            TypeError: if arguments are those of another library.
            ValueError: if a file is not known or not whole; the message says what it holds.
        """
        check_configs(model_configs, torch_dtype)
        loaded = load_models(model_configs, torch_dtype)
        pipe = FluxImagePipeline(device, torch_dtype)
        parts = dict(loaded.components)
        parts["tokenizer"] = _tokenizer(CLIPTokenizer, tokenizer_1_config, parts.get("text_encoder"))
        parts["tokenizer_2"] = _tokenizer(T5TokenizerFast, tokenizer_2_config, parts.get("text_encoder_2"))
        base = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "transformer"))
        pipe.native = TranslatedPipeline(scheduler=FluxFlowMatchScheduler(), **(base | parts))
        pipe.native.set_progress_bar_config(disable=True)
        if parts.get("mllm") is not None:
            is_nexus = isinstance(parts["mllm"], NexusGenModel)
            config = nexus_gen_processor_config if is_nexus else step1x_processor_config
            pipe._processor = _folder_of(QwenVLProcessor, config)
            adopt_token_ids(parts["mllm"], pipe._processor)
        stages = {name: config.vram_config() for name, config in loaded.configs.items() if name in parts}
        arguments = vram_arguments(stages, vram_limit, torch_dtype, device)
        if arguments is None:
            pipe.native.to(device)
        else:
            pipe.native.enable_vram_budget(**arguments)
        return pipe

    def __call__(
        self,
        prompt: str = "",
        negative_prompt: str = "",
        cfg_scale: float = 1.0,
        embedded_guidance: float = 3.5,
        t5_sequence_length: int = 512,
        input_image: Image.Image | None = None,
        denoising_strength: float = 1.0,
        height: int = 1024,
        width: int = 1024,
        seed: int | None = None,
        rand_device: str = "cpu",
        sigma_shift: float | None = None,
        num_inference_steps: int = 30,
        kontext_images: list[Image.Image] | Image.Image | None = None,
        controlnet_inputs: list[ControlNetInput] | None = None,
        ipadapter_images: list[Image.Image] | Image.Image | None = None,
        ipadapter_scale: float = 1.0,
        eligen_entity_prompts: list[str] | None = None,
        eligen_entity_masks: list[Image.Image] | None = None,
        eligen_enable_on_negative: bool = False,
        eligen_enable_inpaint: bool = False,
        infinityou_id_image: Image.Image | None = None,
        infinityou_guidance: float = 1.0,
        flex_inpaint_image: Image.Image | None = None,
        flex_inpaint_mask: Image.Image | None = None,
        flex_control_image: Image.Image | None = None,
        flex_control_strength: float = 0.5,
        flex_control_stop: float = 0.5,
        value_controller_inputs: list[float] | float | None = None,
        step1x_reference_image: Image.Image | None = None,
        nexus_gen_reference_image: Image.Image | None = None,
        lora_encoder_inputs: list[ModelConfig] | ModelConfig | str | None = None,
        lora_encoder_scale: float = 1.0,
        flux_fill_image: Image.Image | None = None,
        flux_fill_mask: Image.Image | None = None,
        flux_redux_image: Image.Image | None = None,
        insert_anything_source_image: Image.Image | None = None,
        insert_anything_source_mask: Image.Image | None = None,
        insert_anything_ref_image: Image.Image | None = None,
        insert_anything_ref_mask: Image.Image | None = None,
        tea_cache_l1_thresh: float | None = None,
        tiled: bool = False,
        tile_size: int = 128,
        tile_stride: int = 64,
        progress_bar_cmd: Callable[[Iterable[Any]], Iterable[Any]] = tqdm,
    ) -> Image.Image:
        """Draw one image; every argument is that of DiffSynth-Studio, see `docs/migration.md` for what it becomes.

        Returns:
            `PIL.Image.Image`: its pixels are cut off to 8 bits, as there.

        Raises:
            TypeError: if an argument has a wrong type.
            ValueError: if an argument is out of range, a model that the call needs is not loaded, or arguments that
                belong together are not; before the first step.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        given |= {"processor": self._processor, "face_encoder": self._face_encoder}
        return run_call(self.native, given)

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
        source = _lora_source(lora_config) if state_dict is None else dict(state_dict)
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
        load_timestep_lora(self.native, _lora_source(lora_config), strength=alpha)

    def enable_lora_merger(self) -> None:
        """Weigh LoRAs by the gates of LoRA-Fusion, with or without VRAM management.

        Raises:
            ValueError: if LoRA-Fusion is not among the files.
        """
        if self.native.lora_fusion is None:
            raise ValueError("`enable_lora_merger` needs `model.safetensors` of LoRAFusion among `model_configs`.")
        enable_lora_fusion(self.native.transformer, self.native.lora_fusion)

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

    @staticmethod
    def from_model_manager(*args: Any, **kwargs: Any) -> FluxImagePipeline:
        """Raise a `NotImplementedError` that shows today's form in place of the first generation's."""
        refuse_former("FluxImagePipeline.from_model_manager")

    def to_native(self, pipeline_class: type[DiffusionPipeline] = FluxConditionedPipeline, **kwargs: Any) -> Any:
        """Make a pipeline of this package or of diffusers with the same modules, to leave this interface.

        Args:
            pipeline_class (`type`, *optional*): [`FluxConditionedPipeline`] by default.
            kwargs: Components that it needs besides, such as `value_encoder=pipe.native.value_encoder`.

        Returns:
            `DiffusionPipeline`
        """
        return self.native.to_pipeline(pipeline_class, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> FluxImagePipeline:
        """Move all models, or change their data type.

        Args:
            args, kwargs: As for `torch.nn.Module.to`.

        Returns:
            `FluxImagePipeline`: itself.
        """
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        self.device, self.torch_dtype = device or self.device, dtype or self.torch_dtype
        self.native.to(*[each for each in (device, dtype) if each is not None])
        return self

    @property
    def vram_management_enabled(self) -> bool:
        """Whether the pipeline is under a VRAM budget."""
        return vram_budget_of(self.native) is not None

    def _face_encoder(self) -> Any:
        if self.infinityou_processor is None:
            arcface = f"{INSIGHTFACE}/../recognition_arcface_ir_se50.pth"
            self.infinityou_processor = InsightFaceEncoder(arcface, root=INSIGHTFACE)
        return self.infinityou_processor

    def __getattr__(self, name: str) -> Any:
        native = self.__dict__.get("native")
        if name in HANDLES and native is not None:
            return handle(native, name)
        if name in NATIVE and native is not None:
            return getattr(native, NATIVE[name])
        if name in REFUSED:
            raise AttributeError(f"`pipe.{name}` {REFUSED[name]}.")
        raise AttributeError(f"`FluxImagePipeline` has no attribute {name!r}. What it has is in docs/migration.md.")


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
    "lora_patcher": "lora_fusion",
    "lora_encoder": "lora_encoder",
    "flux_redux_image_encoder": "redux_encoder",
    "flux_redux_image_embedder": "image_embedder",
}
"""Attributes that are the native pipeline's modules themselves, and their names there."""


TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def adopt_token_ids(model: Any, processor: QwenVLProcessor) -> None:
    """Let a language model that was loaded without its config know the tokens of images as its tokenizer has them.

    Args:
        model (`Qwen2_5_VLForConditionalGeneration`): The model, whose config is set.
        processor ([`QwenVLProcessor`]): Its processor.
    """
    for name, token in TOKENS.items():
        number = processor.tokenizer.convert_tokens_to_ids(token)
        if number is not None:
            setattr(model.config, name, number)


def _tokenizer(kind: Any, config: ModelConfig | None, encoder: Any) -> Any:
    # Without the encoder there is nothing to tokenize for, so nothing is downloaded.
    return None if config is None or encoder is None else _folder_of(kind, config)


def _folder_of(kind: Any, config: ModelConfig | None) -> Any:
    if config is None:
        raise ValueError(f"A processor is needed, but its config is None. Give the folder of a {kind.__name__}.")
    config.download_if_necessary()
    return kind.from_pretrained(config.path)


def _lora_source(config: ModelConfig | str | None) -> Any:
    if config is None:
        raise TypeError("`lora_config` is None; give a file, a `ModelConfig`, or `state_dict`.")
    if not isinstance(config, ModelConfig):
        return config
    if config.state_dict is not None:
        return config.state_dict
    config.download_if_necessary()
    return config.path
