"""Running a ControlNet for one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ...denoise import DenoisingStep, PromptEmbeds
from ...sequence import Contribution


def residual_contribution(
    controlnet: Any,
    step: DenoisingStep,
    control: torch.Tensor,
    *,
    context: PromptEmbeds,
    guidance: torch.Tensor,
    scale: float | Sequence[float],
    mode: int | None = None,
    weights: torch.Tensor | None = None,
) -> Contribution:
    """Run a ControlNet for one step.

    Args:
        controlnet (`FluxControlNetModel`): The ControlNet.
        step (`DenoisingStep`): The step.
        control (`torch.Tensor` of shape `(1 or num_samples, num_tokens, C)`, or pixels for one with a hint block):
            The encoded control picture.
        context (`PromptEmbeds`): What stands in the place of the text; padding that it hides is left out.
        guidance (`torch.Tensor` of shape `(1,)` or `(num_samples,)`):
            Read only if the ControlNet takes an embedded guidance.
        scale (`float` or `Sequence[float]`): Factor of all residuals, or one per block.
        mode (`int`, *optional*): Number of a union ControlNet's mode.
        weights (`torch.Tensor` of shape `(1 or num_samples, num_tokens, 1)`, *optional*): Factors per token.

    Returns:
        `Contribution`: the residuals.
    """
    samples, device = step.latents.shape[0], step.latents.device
    several = isinstance(scale, Sequence)
    inputs = {
        "hidden_states": step.latents,
        "controlnet_cond": control.expand(samples, *control.shape[1:]),
        "controlnet_mode": None if mode is None else torch.full((samples, 1), mode, device=device),
        "timestep": step.timestep,
        "guidance": guidance.expand(samples) if controlnet.config.guidance_embeds else None,
    }
    outputs = []
    for part, text in _without_padding(context, samples):
        outputs.append(
            controlnet(
                **{name: value if value is None else value[part] for name, value in inputs.items()},
                conditioning_scale=1.0 if several else scale,
                pooled_projections=text.pooled,
                encoder_hidden_states=text.hidden_states,
                txt_ids=text.ids,
                img_ids=step.latent_ids,
                return_dict=False,
            )
        )
    double, single = (_join([list(side or ()) for side in sides]) for sides in zip(*outputs))
    if several:
        factors = list(scale)  # type: ignore[arg-type]
        double = [residual * factor for residual, factor in zip(double, factors)]
        single = [residual * factor for residual, factor in zip(single, factors[len(double) :])]
    if weights is not None:
        double, single = ([residual * weights for residual in residuals] for residuals in (double, single))
    return Contribution(
        block_residuals=double,
        single_block_residuals=single,
        residuals_repeat=controlnet.input_hint_block is not None,
    )


def _without_padding(context: PromptEmbeds, samples: int) -> Iterator[tuple[slice, PromptEmbeds]]:
    """The text that is seen, for each run of samples that see the same tokens.

    A ControlNet takes no attention mask; without the padding it needs none.
    """
    if context.mask is None:
        yield slice(None), context
        return
    rows, tokens = context.mask.expand(samples, -1), context.hidden_states.expand(samples, -1, -1)
    pooled, start = context.pooled.expand(samples, -1), 0
    for stop in range(1, samples + 1):
        if stop == samples or not torch.equal(rows[stop], rows[start]):
            part = slice(start, stop)
            kept = rows[start].nonzero().flatten().to(tokens.device)
            yield part, PromptEmbeds(tokens[part].index_select(1, kept), pooled[part], context.ids[kept])
            start = stop


def _join(parts: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    return parts[0] if len(parts) == 1 else [torch.cat(residuals) for residuals in zip(*parts)]
