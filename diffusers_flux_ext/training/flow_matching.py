"""The flow-matching loss, taken through the same call as inference."""

from collections.abc import Sequence

import torch

from ..denoise import DenoisingStep, PromptEmbeds, predict_velocity
from ..sequence import Contribution
from .losses import errors


def flow_matching_loss(
    transformer: torch.nn.Module,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timestep: torch.Tensor,
    latent_ids: torch.Tensor,
    prompt: PromptEmbeds,
    contributions: Sequence[Contribution] = (),
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the mean squared error of the predicted velocity, per sample.

    Args:
        transformer (`FluxTransformer2DModel`): The model.
        latents (`torch.Tensor` of shape `(batch_size, length, 64)`): Clean packed latents.
        noise (`torch.Tensor` of the same shape): Standard normal noise.
        timestep (`torch.Tensor` of shape `(batch_size,)`): In [0, 1]; 1 is pure noise.
        latent_ids (`torch.Tensor` of shape `(length, 3)`): Rotary positions.
        prompt (`PromptEmbeds`): The prompt.
        contributions (`Sequence[Contribution]`): What the conditions add, as in inference.
        guidance (`torch.Tensor` of shape `(batch_size,)`, *optional*): For guidance-distilled models.

    Returns:
        `torch.Tensor` of shape `(batch_size,)`.

    Raises:
        ValueError: if contributions clash or do not fit the transformer.
    """
    level = timestep[:, None, None]
    noisy = (1 - level) * latents + level * noise
    step = DenoisingStep(0, 1, "cond", timestep, noisy, latent_ids, prompt, guidance)
    velocity = predict_velocity(transformer, step, contributions)
    return errors("mse")(velocity, noise - latents, timestep)
