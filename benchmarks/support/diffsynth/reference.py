"""DiffSynth-Studio's own pipeline over the stand-ins of `diffsynth_models`, made by its own `from_pretrained`.

It tells files by a fingerprint of the released sizes, so its loader is replaced by one that knows the stand-ins.
Everything behind the loader is the reference's own code.
"""

import os
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.diffsynth.models import FILES, NEXUS, dit, qwen_processor, redux_embedder
from benchmarks.support.reference import (
    import_reference,
    reference_clip,
    reference_connector,
    reference_controlnet,
    reference_dit,
    reference_embedder,
    reference_ip_adapter,
    reference_lora_encoder,
    reference_lora_patcher,
    reference_nexus_adapter,
    reference_nexus_merger,
    reference_projector,
    reference_siglip,
    reference_t5,
    reference_vae_decoder,
    reference_vae_encoder,
    reference_value_encoder,
)
from benchmarks.support.reference.redux import redux_unit, reference_redux, with_constants
from diffusers_flux_ext.diffsynth.processors import adopt_token_ids
from diffusers_flux_ext.methods.nexus_gen.prompts import embed_prompts


flux_image = import_reference("diffsynth.pipelines.flux_image")


def _controlnet(model: Any) -> Any:
    return reference_controlnet(model, dit())


MAKERS: Mapping[str, Callable[[Any], Any]] = {
    "flux_dit": reference_dit,
    "flux_text_encoder_clip": reference_clip,
    "flux_text_encoder_t5": reference_t5,
    "flux_vae_encoder": reference_vae_encoder,
    "flux_vae_decoder": reference_vae_decoder,
    "flux_controlnet": _controlnet,
    "flux_ipadapter": reference_ip_adapter,
    "siglip_vision_model": reference_siglip,
    "flux_redux_image_encoder": reference_siglip,
    "flux_redux_image_embedder": reference_redux,
    "infiniteyou_image_projector": reference_projector,
    "flux_value_controller": lambda found: reference_value_encoder(found[0]).encoders[found[1]],
    "flux_lora_encoder": reference_lora_encoder,
    "flux_lora_patcher": reference_lora_patcher,
    "step1x_connector": reference_connector,
    "qwen_image_text_encoder": lambda model: model,
    "nexus_gen_llm": lambda model: _LanguageModel(model),
    "nexus_gen_generation_adapter": reference_nexus_adapter,
    "nexus_gen_editing_adapter": reference_nexus_merger,
}
"""By the reference's name of a model, its module of ours."""
_SEVERAL = ("flux_controlnet", "flux_value_controller")


class _LanguageModel:
    """The reference's language model of Nexus-Gen needs transformers 4.49; ours, compared with it, stands in."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def load_processor(self, path: str) -> None:
        # The script gives a repository's name, which the reference would ask the Hub for.
        base = Path(os.environ["DIFFSYNTH_MODEL_BASE_PATH"])
        self.processor = qwen_processor(base, f"{NEXUS}/processor")

    def __call__(self, prompt: str, image: Any = None) -> Any:
        adopt_token_ids(self.model, self.processor)
        embeds = embed_prompts(self.model, self.processor, [prompt], None if image is None else [image])
        if image is None:
            return embeds["image_embeds"][0], None, None
        grids = torch.tensor([[1, *embeds["reference_grid"].tolist()], [1, 18, 18]])
        return embeds["image_embeds"][0], embeds["reference_embeds"][0], grids


class _Pool:
    """What the reference's `ModelPool` answers with."""

    def __init__(self, configs: list[Any]) -> None:
        self.models: dict[str, list[Any]] = {}
        for config in configs:
            for name, model in FILES[config.model_id, config.origin_file_pattern].models.items():
                self.models.setdefault(name, []).append(MAKERS[name](model()))

    def fetch_model(self, name: str, index: Any = None) -> Any:
        found = self.models.get(name)
        if found is None or (name in _SEVERAL and len(found) > 1):
            return found
        return found[0]


@contextmanager
def reference_loader(root: Path, monkeypatch: Any, face: Any = None) -> Iterator[None]:
    """Let the reference's `from_pretrained` load stand-ins that lie below a folder.

    Args:
        root (`Path`): The folder.
        monkeypatch (`pytest.MonkeyPatch`): Undone by the caller's test.
        face (*optional*): The reference's processor of faces.
    """
    pipeline = flux_image.FluxImagePipeline
    original = pipeline.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        configs = kwargs["model_configs"]
        step1x = any(config.model_id.startswith("Qwen/") for config in configs)
        monkeypatch.setattr(pipeline, "download_and_load_models", lambda self, given, limit=None: _Pool(list(given)))
        monkeypatch.setattr(flux_image, "InfinitYou", lambda device: face)
        if step1x:
            monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *a, **k: qwen_processor(root))
            monkeypatch.setattr(flux_image, "Step1xEditEmbedder", _embedder)
            # Its own connector refuses bfloat16 in a float32 pipeline.
            monkeypatch.setattr(import_reference("diffsynth.models.step1x_text_encoder"), "torch", _Float32Torch())
        pipe = original(*args, **kwargs)
        if any(config.offload_dtype is not None for config in configs):
            # What its loader does for models under VRAM management.
            pipe.enable_lora_hot_loading(pipe.dit)
        if pipe.flux_redux_image_embedder is not None:
            _narrow_redux(pipe, configs)
        return pipe

    monkeypatch.setattr(pipeline, "from_pretrained", staticmethod(from_pretrained))
    yield


def _embedder(model: Any, processor: Any) -> Any:
    adopt_token_ids(model, processor)
    embedder = reference_embedder(model, processor)
    # Ids of the released tokenizer are constants there.
    released = {2073: "âĢľ", 854: "âĢĿ", 151653: "<|vision_end|>"}
    ids = {number: processor.tokenizer.convert_tokens_to_ids(token) for number, token in released.items()}
    embedder.forward = types.MethodType(with_constants(type(embedder).forward, ids), embedder)
    return embedder


class _Float32Torch:
    """torch, for a module that rounds to bfloat16 whatever the pipeline's data type is."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _narrow_redux(pipe: Any, configs: list[Any]) -> None:
    names = [type(unit).__name__ for unit in pipe.units]
    width = pipe.dit.pooled_text_embedder[0].in_features
    pipe.units[names.index("FluxImageUnit_ReduxPromptEmbedder")] = redux_unit(redux_embedder(), width)
