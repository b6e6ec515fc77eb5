"""`FluxImagePipeline` with DiffSynth-Studio's signatures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm
from transformers import CLIPTokenizer, T5TokenizerFast

from ..inputs.qwen_vl import QwenVLProcessor
from ..methods.lora_fusion.gates import FluxLoRAFusion
from ..methods.nexus_gen.language_model import NexusGenModel
from ..schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler
from .attributes import AttributesMixin
from .inputs import ControlNetInput
from .loading import load_models, vram_configs
from .loras import LoRAMixin
from .model_config import ModelConfig
from .native import TranslatedPipeline
from .older import check_configs
from .processors import adopt_token_ids, default_face_encoder, load_folder, tokenizer_of
from .running import run_call
from .vram import vram_arguments


BASE = ("vae", "text_encoder", "text_encoder_2", "transformer", "tokenizer", "tokenizer_2")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class FluxImagePipeline(LoRAMixin, AttributesMixin):
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
        self.native = _native({})
        self.infinityou_processor: Any = None
        self.lora_patcher: FluxLoRAFusion | None = None
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
        if "tokenizer" not in parts:
            parts["tokenizer"] = tokenizer_of(CLIPTokenizer, tokenizer_1_config, parts.get("text_encoder"))
        if "tokenizer_2" not in parts:
            parts["tokenizer_2"] = tokenizer_of(T5TokenizerFast, tokenizer_2_config, parts.get("text_encoder_2"))
        # Not a component: the gates hook the transformer, and a VRAM plan copies that with all that it holds.
        pipe.lora_patcher = parts.pop("lora_fusion", None)
        pipe.native = _native(parts)
        if parts.get("mllm") is not None:
            is_nexus = isinstance(parts["mllm"], NexusGenModel)
            config = nexus_gen_processor_config if is_nexus else step1x_processor_config
            pipe._processor = load_folder(QwenVLProcessor, config)
            adopt_token_ids(parts["mllm"], pipe._processor)
        arguments = vram_arguments(vram_configs(loaded), vram_limit, torch_dtype, device)
        if arguments is None:
            pipe.native.to(device)
        else:
            pipe.native.enable_vram_budget(**arguments)
        if pipe.lora_patcher is not None:
            pipe.lora_patcher.to(device)
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

    def _face_encoder(self) -> Any:
        if self.infinityou_processor is None:
            self.infinityou_processor = default_face_encoder()
        return self.infinityou_processor


def _native(parts: dict[str, Any]) -> TranslatedPipeline:
    everything: dict[str, Any] = {**dict.fromkeys(BASE), **parts}
    native = TranslatedPipeline(scheduler=FluxFlowMatchScheduler(), **everything)
    native.set_progress_bar_config(disable=True)
    return native
