"""The reference's InfiniteYou: its projector, and a processor that starts from a given face embedding."""

from typing import Any

import torch
from torch import nn

from benchmarks.support.reference.boot import import_reference
from diffusers_flux_ext import InfiniteYouImageProjector


flux_infiniteyou = import_reference("diffsynth.models.flux_infiniteyou")
converters = import_reference("diffsynth.utils.state_dict_converters.flux_infiniteyou")
SIZES = ("dim", "depth", "dim_head", "heads", "num_queries", "embedding_dim", "output_dim", "ff_mult")


def reference_projector(projector: InfiniteYouImageProjector) -> nn.Module:
    """The reference's `InfiniteYouImageProjector` with the sizes and weights of `projector`."""
    module = flux_infiniteyou.InfiniteYouImageProjector(**{name: projector.config[name] for name in SIZES})
    weights = {"image_proj": projector.state_dict()}
    module.load_state_dict(converters.FluxInfiniteYouImageProjectorStateDictConverter(weights))
    return module.eval().requires_grad_(False)


class EmbeddedFace:
    """Stands in for the reference's processor after face detection: the "picture" is an embedding."""

    def prepare_infinite_you(
        self, model: nn.Module, id_image: torch.Tensor, infinityou_guidance: float, device: Any
    ) -> dict[str, torch.Tensor]:
        """As the reference's own, without detection and recognition."""
        return {
            "id_emb": model(id_image.reshape(1, 1, -1)),
            "infinityou_guidance": torch.tensor([infinityou_guidance]),
        }
