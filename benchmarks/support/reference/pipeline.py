"""Both sides of a parity test: the reference's whole pipeline and diffusers' components, with the same weights."""

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.support.reference.boot import import_reference
from benchmarks.support.reference.dit import reference_dit
from benchmarks.support.reference.text_encoders import reference_clip, reference_t5
from benchmarks.support.reference.vae import reference_vae_decoder, reference_vae_encoder
from diffusers_flux_ext.testing import tiny_components


flux_image = import_reference("diffsynth.pipelines.flux_image")


@dataclass(frozen=True)
class ReferencePair:
    """Attributes:
    reference (`diffsynth.pipelines.flux_image.FluxImagePipeline`):
        Driven by its own `__call__`. Pass `progress_bar_cmd=list` to keep it quiet.
    components (`dict`):
        Arguments of `FluxPipeline` and its subclasses.
    """

    reference: Any
    components: dict[str, Any]


def reference_pipeline(components: dict[str, Any], device: Any = "cpu", dtype: Any = torch.float32) -> Any:
    """The reference's `FluxImagePipeline`, assembled from the components of a `FluxPipeline` on the same device."""
    pipe = flux_image.FluxImagePipeline(device=device, torch_dtype=dtype)
    pipe.tokenizer_1, pipe.tokenizer_2 = components["tokenizer"], components["tokenizer_2"]
    pipe.dit = reference_dit(components["transformer"], share=torch.device(device).type != "cpu")
    with torch.device(device):
        pipe.text_encoder_1 = reference_clip(components["text_encoder"]).to(dtype)
        pipe.text_encoder_2 = reference_t5(components["text_encoder_2"]).to(dtype)
        pipe.vae_encoder = reference_vae_encoder(components["vae"]).to(dtype)
        pipe.vae_decoder = reference_vae_decoder(components["vae"]).to(dtype)
    return pipe


def reference_pair(seed: int = 0, **transformer_overrides: Any) -> ReferencePair:
    """Builds both sides with the same tiny weights.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of all weights.
        transformer_overrides:
            Entries that replace those of the tiny transformer's config, such as `guidance_embeds=False`.
    """
    components = tiny_components(seed, **transformer_overrides)
    return ReferencePair(reference=reference_pipeline(components), components=components)
