"""From token groups to a velocity: the only place that calls the transformer, in inference and in training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from diffusers import FluxTransformer2DModel

from ._compat import attention_accepts_mask
from ._sharing import one_forward
from .attention.image_prompts import IMAGE_PROMPTS, place_image_prompts
from .attention.parallel import check_runs_split, split_attention_kwargs, split_tokens
from .attention.plan import AttentionPlan, build_attention_plan
from .attention.processor import all_run_plans, attention_processors, check_image_prompts_run
from .caches.rules import check_cache_allows_residuals
from .joining import check_group, check_tensor, join, join_ids, sort
from .parallel.budgets import fit_budgets
from .sequence import Contribution, JointLayout, TokenGroup, padding_rules


@dataclass(frozen=True)
class PromptEmbeds:
    """An encoded prompt.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch_size, length, 4096)`): T5 hidden states.
        pooled (`torch.Tensor` of shape `(batch_size, 768)`): CLIP's pooled output.
        ids (`torch.Tensor` of shape `(length, 3)`): Rotary positions, zero for text.
        mask (`torch.Tensor` of shape `(batch_size or 1, length)`, *optional*):
            Boolean. False marks hidden padding; by default everything is seen, as FLUX.1 was trained. Best on the
            CPU. Pass the same tensor at every step: plans are cached by identity.

    Raises:
        ValueError: if the mask has another type or shape, or hides all tokens of a sample.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        samples, length = self.hidden_states.shape[:2]
        if self.mask.dtype != torch.bool or tuple(self.mask.shape) not in ((1, length), (samples, length)):
            raise ValueError(
                f"The mask of a prompt of {samples} samples and {length} tokens is {self.mask.dtype} of the shape "
                f"{tuple(self.mask.shape)}; expected a boolean one of the shape {(samples, length)}. A condition that "
                f"changes the number of tokens has to give its own mask, or none."
            )
        if not bool(self.mask.any(dim=1).all()):
            raise ValueError("The mask of a prompt hides all tokens of a sample. Leave at least one visible.")


@dataclass(frozen=True)
class DenoisingStep:
    """The state of one call of the transformer.

    Args:
        index (`int`): Number of the step, from 0.
        num_steps (`int`): Number of steps of the loop.
        branch (`"cond"` or `"uncond"`): Branch of classifier-free guidance.
        timestep (`torch.Tensor` of shape `(batch_size,)`): In [0, 1]; 1 is pure noise.
        latents (`torch.Tensor` of shape `(batch_size, target_length, 64)`): Packed latents.
        latent_ids (`torch.Tensor` of shape `(target_length, 3)`): Their rotary positions.
        prompt (`PromptEmbeds`): The prompt of this branch.
        guidance (`torch.Tensor` of shape `(batch_size,)`, *optional*): For guidance-distilled models.
        next_timestep (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Where the scheduler goes from here, in [0, 1]; 0 in the last step.
    """

    index: int
    num_steps: int
    branch: Literal["cond", "uncond"]
    timestep: torch.Tensor
    latents: torch.Tensor
    latent_ids: torch.Tensor
    prompt: PromptEmbeds
    guidance: torch.Tensor | None = None
    next_timestep: torch.Tensor | None = None


def extend_prompt(prompt: PromptEmbeds, contributions: Sequence[Contribution]) -> PromptEmbeds:
    """Return the whole prompt: text that contributions append (see `in_prompt` of [`TokenGroup`]), then the prompt.

    Args:
        prompt (`PromptEmbeds`): The prompt of a branch, after any condition has replaced it.
        contributions (`Sequence[Contribution]`): In any order, which only affects the order of the tokens.

    Returns:
        `PromptEmbeds`: `prompt` itself if nothing is appended. Tokens that are part of the prompt in some samples only
        are hidden from the others by the mask.

    Raises:
        ValueError: if tokens do not fit the prompt, or `in_prompt` has another type or shape.
    """
    samples = prompt.hidden_states.shape[0]
    groups, masks = [], []
    for group in (group for part in contributions for group in part.text):
        shown = _shown(group, samples)
        if bool(shown.any()):
            check_group(group, prompt.hidden_states, prompt.hidden_states)
            groups.append(group)
            masks.append(shown.expand(samples, -1))
    if not groups:
        return prompt
    groups.append(TokenGroup("prompt", prompt.hidden_states, prompt.ids))
    own = torch.ones(1, groups[-1].length, dtype=torch.bool) if prompt.mask is None else prompt.mask.cpu()
    mask = torch.cat([*masks, own.expand(samples, -1)], dim=1)
    return PromptEmbeds(
        join([group.hidden_states for group in groups], samples),
        prompt.pooled,
        join_ids(groups),
        None if prompt.mask is None and bool(mask.all()) else mask,
    )


def _shown(group: TokenGroup, samples: int) -> torch.Tensor:
    """Return which tokens are part of the prompt, `(1 or samples, length)` on the CPU."""
    mask = torch.as_tensor(group.in_prompt)
    mask = mask if mask.ndim else mask.reshape(1, 1)
    fits = mask.ndim == 2 and mask.shape[0] in (1, samples) and mask.shape[1] in (1, group.length)
    if mask.dtype != torch.bool or not fits:
        raise ValueError(
            f"`in_prompt` of the group {group.name!r} is {mask.dtype} of the shape {tuple(mask.shape)}; expected a "
            f"boolean, or a boolean tensor of the shape {(samples, group.length)}."
        )
    return mask.cpu().expand(-1, group.length)


class PlanCache:
    """Caches the attention plan of each branch while rules, lengths and the transformer's abilities stay the same."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Sequence[object], Any, AttentionPlan | None]] = {}

    def get(
        self,
        branch: str,
        parts: Sequence[object],
        state: Any,
        build: Callable[[], AttentionPlan | None],
    ) -> AttentionPlan | None:
        """Return the cached plan of `branch`, or `build` it again if `parts` (by identity) or `state` changed."""
        known = self._entries.get(branch)
        if known is not None and known[1] == state and len(known[0]) == len(parts):
            if all(old is new for old, new in zip(known[0], parts)):
                return known[2]
        plan = build()
        self._entries[branch] = (parts, state, plan)
        return plan


@dataclass(frozen=True)
class PreparedCall:
    """One call of the transformer, ready to be made.

    Args:
        inputs (`dict[str, Any]`): The transformer's arguments, by name.
        target_length (`int`): Tokens of the target.
        image_order (`torch.Tensor` of shape `(image_length,)`, *optional*): How the image tokens are sorted.
    """

    inputs: dict[str, Any]
    target_length: int
    image_order: torch.Tensor | None

    def finish(self, velocity: torch.Tensor) -> torch.Tensor:
        """Return the velocity of the target, in the order of its latents.

        Args:
            velocity (`torch.Tensor` of shape `(batch_size, image_length, 64)`): What the transformer returned.

        Returns:
            `torch.Tensor` of shape `(batch_size, target_length, 64)`
        """
        if self.image_order is not None:
            return velocity.index_select(1, self.image_order.argsort()[: self.target_length])
        return velocity if velocity.shape[1] == self.target_length else velocity[:, : self.target_length]


def predict_velocity(
    transformer: FluxTransformer2DModel,
    step: DenoisingStep,
    contributions: Sequence[Contribution],
    plan_cache: PlanCache | None = None,
) -> torch.Tensor:
    """Call the transformer once with everything that the conditions contribute.

    Args:
        transformer (`FluxTransformer2DModel`):
            The model; it may be quantised, compiled or offloaded. Attention rules run as classes of tokens when its
            layers have [`FluxRegionalAttnProcessor`]s (see [`regional_attention`]) and as a dense mask otherwise.
        step (`DenoisingStep`): Latents, timestep, prompt and guidance.
        contributions (`Sequence[Contribution]`): One per condition, in any order.
        plan_cache (`PlanCache`, *optional*): Pass the same object at every step, so that plans are built once.

    Returns:
        `torch.Tensor` of shape `(batch_size, target_length, 64)`: the velocity, noise minus sample.

    Raises:
        ValueError: if contributions clash or do not fit the transformer; nothing has run then.
    """
    call = prepare_call(transformer, step, contributions, plan_cache)
    with one_forward(transformer):
        return call.finish(transformer(**call.inputs)[0])


def prepare_call(
    transformer: FluxTransformer2DModel,
    step: DenoisingStep,
    contributions: Sequence[Contribution],
    plan_cache: PlanCache | None = None,
) -> PreparedCall:
    """Prepare the call of the transformer that [`predict_velocity`] makes, whose arguments and errors these are.

    Returns:
        `PreparedCall`: the transformer's arguments, and how to read what it returns.
    """
    batch_size, target_length = step.latents.shape[:2]
    text, image = _collect_groups(transformer, step, contributions)
    layout = JointLayout(
        tuple(group.name for group in text + image),
        ("text",) * len(text) + ("target",) + ("reference",) * (len(image) - 1),
        tuple(group.length for group in text + image),
        batch_size,
    )
    check_runs_split(transformer, contributions, layout, step.prompt.mask is not None)
    fit_budgets(transformer, batch_size, layout.total - layout.num_text_tokens, layout.num_text_tokens)
    split = split_tokens(transformer, layout, step.latents.device)
    text_ids = join_ids(text)
    plan = _plan(transformer, step, contributions, layout, text_ids, plan_cache or PlanCache())
    text_order = plan.text_order if plan is not None else None
    image_order = plan.image_order if plan is not None else None
    residuals = _collect_residuals(transformer, contributions, step.latents, layout, image_order)
    if split is not None:
        residuals = {name: [split.local(each, dim=1) for each in given] for name, given in residuals.items()}
    attention_kwargs = place_image_prompts(_attention_kwargs(contributions, plan), transformer, layout, image_order)
    attention_kwargs = split_attention_kwargs(attention_kwargs, split)
    if IMAGE_PROMPTS in attention_kwargs:
        check_image_prompts_run(transformer)
    inputs = {
        "hidden_states": sort(join([group.hidden_states for group in image], batch_size), image_order, dim=1),
        "timestep": step.timestep,
        "guidance": step.guidance,
        "pooled_projections": step.prompt.pooled,
        "encoder_hidden_states": sort(join([group.hidden_states for group in text], batch_size), text_order, dim=1),
        "txt_ids": sort(text_ids, text_order, dim=0),
        "img_ids": sort(join_ids(image), image_order, dim=0),
        "joint_attention_kwargs": attention_kwargs,
        "return_dict": False,
        **residuals,
    }
    return PreparedCall(inputs, target_length, image_order)


def _collect_groups(
    transformer: FluxTransformer2DModel, step: DenoisingStep, contributions: Sequence[Contribution]
) -> tuple[list[TokenGroup], list[TokenGroup]]:
    text = [group for part in contributions for group in part.text]
    text.append(TokenGroup("prompt", step.prompt.hidden_states, step.prompt.ids))
    channels = [channel for part in contributions for channel in part.channels]
    for index, channel in enumerate(channels):
        check_tensor(f"channels {index}", channel, step.latents, step.latents.shape[1], None)
    wide = [channel.expand(step.latents.shape[0], -1, -1) for channel in channels]
    target = torch.cat([step.latents, *wide], dim=2) if channels else step.latents
    in_channels = transformer.config.in_channels
    if target.shape[2] != in_channels:
        raise ValueError(
            f"The transformer takes {in_channels} channels per token, but the latents have {step.latents.shape[2]} "
            f"and the conditions add {[channel.shape[2] for channel in channels]}, {target.shape[2]} in all. Use the "
            f"model that belongs to these conditions, or the conditions that belong to this model."
        )
    references = [_widen(group, in_channels) for part in contributions for group in part.reference]
    for group in text:
        check_group(group, step.prompt.hidden_states, step.latents)
    for group in references:
        check_group(group, target, step.latents)
    return text, [TokenGroup("target", target, step.latent_ids), *references]


def _widen(group: TokenGroup, channels: int) -> TokenGroup:
    """Pad a reference group with zeros, since references have no extra channels."""
    missing = channels - group.hidden_states.shape[2]
    if missing <= 0:
        return group
    return TokenGroup(group.name, torch.nn.functional.pad(group.hidden_states, (0, missing)), group.ids)


def _plan(
    transformer: FluxTransformer2DModel,
    step: DenoisingStep,
    contributions: Sequence[Contribution],
    layout: JointLayout,
    text_ids: torch.Tensor,
    cache: PlanCache,
) -> AttentionPlan | None:
    rules = [rule for part in contributions for rule in part.rules]
    mask = step.prompt.mask
    if not rules and mask is None:
        return None

    processors = attention_processors(transformer)
    abilities: dict[str, Any] = {
        "device": step.latents.device,
        "classes_supported": all_run_plans(processors),
        "mask_supported": all(attention_accepts_mask(getattr(p, "_attention_backend", None)) for p in processors),
    }

    def build() -> AttentionPlan | None:
        hidden = [] if mask is None else padding_rules("prompt", mask)
        unrotated = not bool(text_ids.any())
        return build_attention_plan(layout, [*rules, *hidden], **abilities, text_is_unrotated=unrotated)

    return cache.get(step.branch, [*rules, mask], (layout, abilities), build)


def _attention_kwargs(contributions: Sequence[Contribution], plan: AttentionPlan | None) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    if plan is not None:
        merged = {"attention_plan": plan} if plan.mask is None else {"attention_mask": plan.mask}
    for part in contributions:
        given = dict(part.attention_kwargs)
        for name in merged.keys() & given.keys():
            if isinstance(merged[name], tuple) and isinstance(given[name], tuple):
                merged[name] += given.pop(name)
        clash = sorted(merged.keys() & given.keys())
        if clash:
            raise ValueError(
                f"Two sources give the attention arguments {clash}. Each name can be given once; attention rules use "
                f"'attention_plan' or 'attention_mask' themselves, so state your mask as `AttentionRule`s instead."
            )
        merged.update(given)
    return merged


def _collect_residuals(
    transformer: FluxTransformer2DModel,
    contributions: Sequence[Contribution],
    latents: torch.Tensor,
    layout: JointLayout,
    image_order: torch.Tensor | None,
) -> dict[str, list[torch.Tensor]]:
    num_target = layout.lengths[layout.kinds.index("target")]
    num_reference = layout.total - layout.num_text_tokens - num_target
    for part in contributions:
        for residual in (*part.block_residuals, *part.single_block_residuals):
            check_tensor("block residuals", residual, latents, num_target, transformer.inner_dim)
    doubles = [(part.block_residuals, part.residuals_repeat) for part in contributions]
    singles = [(part.single_block_residuals, False) for part in contributions]
    slots = {
        "controlnet_block_samples": (len(transformer.transformer_blocks), doubles),
        "controlnet_single_block_samples": (len(transformer.single_transformer_blocks), singles),
    }
    collected: dict[str, list[torch.Tensor]] = {}
    for argument, (depth, parts) in slots.items():
        summed = _sum_residuals([part for part in parts if len(part[0])], depth)
        if summed:
            # Neighbouring blocks share a residual: it is padded and sorted once.
            moved = {id(residual): residual for residual in summed}
            for key, residual in moved.items():
                padded = torch.nn.functional.pad(residual, (0, 0, 0, num_reference)) if num_reference else residual
                moved[key] = sort(padded, image_order, dim=1)
            collected[argument] = [moved[id(residual)] for residual in summed]
    if collected:
        check_cache_allows_residuals(transformer)
    return collected


def _sum_residuals(parts: Sequence[tuple[Sequence[torch.Tensor], bool]], depth: int) -> list[torch.Tensor]:
    if len(parts) == 1 and not parts[0][1]:
        # The transformer itself spreads them over its blocks.
        return list(parts[0][0])
    if not parts:
        return []
    sums: dict[tuple[int, ...], torch.Tensor] = {}
    aligned = []
    for block in range(depth):
        # One condition's residual serves several blocks: its share per block follows from its own count.
        chosen = tuple(
            block % len(residuals) if repeat else block // -(-depth // len(residuals)) for residuals, repeat in parts
        )
        if chosen not in sums:
            # Added in the order given, as diffusers does, so that the sums are bit-equal.
            sums[chosen] = reduce(torch.add, [residuals[index] for (residuals, _), index in zip(parts, chosen)])
        aligned.append(sums[chosen])
    return aligned
