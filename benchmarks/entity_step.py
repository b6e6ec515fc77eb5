"""One transformer step with entities on any device: the stock transformer with a dense mask, ours, the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffusers_flux_ext import Contribution, DenoisingStep, PlanCache, PromptEmbeds, TokenGroup, predict_velocity
from diffusers_flux_ext.attention.processor import regional_attention
from diffusers_flux_ext.methods.eligen.condition import entity_rules


Side = Callable[[], torch.Tensor]


def entity_masks(entities: int, side: int) -> torch.Tensor:
    """Return boxes in rows of three, each about a seventh of the image, `(entities, side, side)`.

    Rows share the image: the boxes of more than six entities are lower.
    """
    masks = torch.zeros(entities, side, side, dtype=torch.bool)
    rows = max(2, -(-entities // 3))
    height, width = round(side * 0.9 / rows), round(side * 0.31)
    for index in range(entities):
        top, left = index // 3 * (side // rows), index % 3 * (side // 3)
        masks[index, top : top + height, left : left + width] = True
    return masks


@dataclass(frozen=True)
class EntityStep:
    """The inputs of one step with entities, on the device and in the data type of the transformer.

    Args:
        latents (`torch.Tensor` of shape `(1, 16, 2 * side, 2 * side)`): Latents, not packed.
        texts (`torch.Tensor` of shape `(1, entities, length, width)`): Text tokens of the entities.
        masks (`torch.Tensor` of shape `(entities, side, side)`): Where the entities are, on the CPU.
        step (`DenoisingStep`): The step, with the prompt and packed latents.
        contribution (`Contribution`): The entities as tokens and rules.
    """

    latents: torch.Tensor
    texts: torch.Tensor
    masks: torch.Tensor
    step: DenoisingStep
    contribution: Contribution

    def __call__(self, transformer: Any, cache: PlanCache) -> torch.Tensor:
        """Return the velocity, by the attention processors that the transformer has."""
        return predict_velocity(transformer, self.step, [self.contribution], cache)


def make_entity_step(
    transformer: Any, side: int, text_tokens: int, entities: int, entity_tokens: int | None = None
) -> EntityStep:
    """Draw the inputs of a step.

    Args:
        transformer (`FluxTransformer2DModel`): Says sizes, device and data type.
        side (`int`): Tokens on a side of the image.
        text_tokens (`int`): Of the prompt.
        entities (`int`): How many.
        entity_tokens (`int`, *optional*): Of each entity; as many as the prompt's by default.

    Returns:
        `EntityStep`
    """
    config, generator = transformer.config, torch.Generator().manual_seed(1)
    weight = next(transformer.parameters())

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(weight)

    latents = normal(1, 16, 2 * side, 2 * side)
    length = text_tokens if entity_tokens is None else entity_tokens
    prompt = normal(1, text_tokens, config.joint_attention_dim)
    texts = normal(1, entities, length, config.joint_attention_dim)
    masks = entity_masks(entities, side)
    packed = latents.view(1, 16, side, 2, side, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, side * side, 64)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(side).float(), torch.arange(side).float())
    zeros, entity_zeros = (torch.zeros(count, 3, device=weight.device) for count in (text_tokens, length))
    timestep, guidance = (torch.tensor([value]).to(weight) for value in (0.5, 3.5))
    embeds = PromptEmbeds(prompt, normal(1, config.pooled_projection_dim), zeros)
    step = DenoisingStep(0, 1, "cond", timestep, packed, ids.to(weight.device), embeds, guidance)
    names = [f"entity_{index}" for index in range(entities)]
    contribution = Contribution(
        text=[TokenGroup(name, texts[:, index], entity_zeros) for index, name in enumerate(names)],
        rules=[rule for name, mask in zip(names, masks) for rule in entity_rules(name, mask.flatten()[None])],
    )
    return EntityStep(latents, texts, masks, step, contribution)


def own_sides(transformer: Any, step: EntityStep) -> dict[str, Side]:
    """Return the stock transformer with a dense mask, and ours, as functions that run the step."""
    caches = {"dense mask": PlanCache(), "ours": PlanCache()}

    def ours() -> torch.Tensor:
        with regional_attention(transformer):
            return step(transformer, caches["ours"])

    return {"dense mask": lambda: step(transformer, caches["dense mask"]), "ours": ours}


def reference_side(dit: Any, step: EntityStep) -> Side:
    """Return the reference's model function on the same inputs.

    Args:
        dit (`torch.nn.Module`): The reference's transformer.
        step (`EntityStep`): The inputs.

    Returns:
        `Callable`
    """
    from benchmarks.support.reference.dit import reference_velocity

    prompt = step.step.prompt
    pixels = step.masks.repeat_interleave(2, 1).repeat_interleave(2, 2)[None, :, None].to(step.latents)
    named = {"entity_prompt_emb": step.texts, "entity_masks": pixels} if len(step.masks) else {}
    inputs = {
        "latents": step.latents,
        "timestep": 1000 * step.step.timestep,
        "prompt_emb": prompt.hidden_states,
        "pooled_prompt_emb": prompt.pooled,
        "guidance": step.step.guidance,
        "text_ids": prompt.ids[None].to(step.latents),
    }
    return lambda: reference_velocity(dit, **inputs, **named)
