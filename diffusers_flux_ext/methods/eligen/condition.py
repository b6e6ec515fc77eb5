"""EliGen: entities with prompts and regions of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers.utils import logging

from ...canvas import Canvas
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...former_arguments import former_arguments
from ...inputs.checks import check_choice, check_flag, shown
from ...inputs.masks import RegionMask, check_regions, is_box, mask_to_tokens
from ...inputs.numbers import read_count
from ...inputs.text import text_group
from ...sequence import AttentionRule, Contribution, padding_rules


logger = logging.get_logger(__name__)

AUTO = "auto"


@former_arguments({"negative": {True: "own", False: None}}, on_negative="negative")
@dataclass(frozen=True, eq=False)
class EntityRegions(FluxCondition):
    """Entity-level control by regional attention, EliGen ([paper](https://huggingface.co/papers/2501.01097)).

    An entity's text and the image's tokens inside its mask see each other; it sees no other text and no reference.
    The image and the global prompt see each other everywhere. The released LoRA `DiffSynth-Studio/Eligen` teaches
    FLUX.1-dev to follow regions; without it they have little effect.

    Args:
        prompts (`Sequence[str]` or `Sequence[Sequence[str]]`):
            One prompt per entity; one such list for all samples, or one list per prompt of the batch.
        masks (`Sequence[RegionMask]` or `Sequence[Sequence[RegionMask]]`):
            One region per entity, nested like `prompts`: a PIL image of any mode, an array or a tensor (white is
            inside; any size, resized by nearest neighbour, whatever the aspect ratio) or a box
            `(left, top, right, bottom)` in pixels or fractions of the canvas. Regions may overlap.
        negative (`"own"` or `None`, *optional*):
            What the unconditional branch gets: regions of its own, each with the global negative prompt, or none.
        max_sequence_length (`int`, `Sequence[int]` or `"auto"`, *optional*):
            Text tokens of an entity, at most 512; one number for all, or one per entity. `None` takes the pipeline's.
            `"auto"` gives each entity as many tokens as its text has, up to the pipeline's number, and no padding:
            far fewer tokens, but the LoRA was trained with padding.
        mask_padding (`bool`, *optional*):
            Whether to hide the padding of the entities' texts. `None` takes the pipeline's. `"auto"` leaves none.

    Raises:
        ValueError: if the lists are empty, their lengths differ, a sequence length is out of range, or padding is
            asked for beside `max_sequence_length="auto"`.
    """

    prompts: Sequence[str] | Sequence[Sequence[str]]
    masks: Sequence[RegionMask] | Sequence[Sequence[RegionMask]]
    negative: Literal["own"] | None = None
    max_sequence_length: int | Sequence[int] | Literal["auto"] | None = None
    mask_padding: bool | None = None

    def __post_init__(self) -> None:
        samples = self._samples()
        if not samples or not any(prompts for prompts, _ in samples):
            raise ValueError(
                "`prompts` of EntityRegions is empty, but needs at least one entity. Leave the condition out instead."
            )
        for index, (prompts, masks) in enumerate(samples):
            if len(prompts) != len(masks):
                where = f" for sample {index}" if len(samples) > 1 else ""
                raise ValueError(
                    f"`EntityRegions` has {len(prompts)} prompts but {len(masks)} masks{where}. Give as many `masks` "
                    f"of EntityRegions as there are `prompts` of EntityRegions."
                )
            if not all(isinstance(prompt, str) for prompt in prompts):
                raise TypeError(f"`prompts` of EntityRegions must be texts, got {shown(list(prompts))}.")
        for mask in (mask for _, masks in samples for mask in masks):
            check_regions("`masks` of EntityRegions", [mask])
        check_choice("`negative` of EntityRegions", self.negative, ("own", None))
        if self.mask_padding is not None:
            check_flag("`mask_padding` of EntityRegions", self.mask_padding)
            if self._own_lengths and not self.mask_padding:
                raise ValueError(
                    "`mask_padding` of EntityRegions is False, but max_sequence_length='auto' leaves no padding to be "
                    "seen. Leave `mask_padding` out, or give `max_sequence_length` as a number."
                )
        self._lengths(None)

    def demand(self, prompt_tokens: int) -> Demand:
        """Count a text for every entity, and attention restricted by regions."""
        lengths = self._lengths(prompt_tokens)
        return Demand(text_tokens=sum(lengths), texts=len(lengths), masked=True)

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Encode every entity's prompt with T5 and put its mask on the token grid.

        Args:
            pipe (`Encoders`): Gives T5 and its tokenizer.
            canvas (`Canvas`): Gives the size and the data type.

        Returns:
            `dict[str, torch.Tensor]`: `"masks"` of shape `(1 or num_samples, entities, num_tokens)`, boolean, and for
            each entity `"entity_<i>"` of shape `(1 or num_samples, length, 4096)` and, if padding is hidden,
            `"visible_<i>"` of shape `(1 or num_samples, length)`, boolean. With `"auto"`, `length` is that of the
            longest text among the samples, and shorter ones have hidden padding.
        """
        samples = self._samples()
        masks = torch.stack([self._token_masks(masks, canvas) for _, masks in samples])
        encoded = {"masks": canvas.per_sample(masks, "`masks` of EntityRegions")}
        by_length: dict[int, list[int]] = {}
        for index, length in enumerate(self._lengths(canvas.max_sequence_length)):
            by_length.setdefault(length, []).append(index)
        for length, entities in by_length.items():
            texts = [prompts[entity] if entity < len(prompts) else "" for prompts, _ in samples for entity in entities]
            embeds, visible = pipe.encode_text(texts, length, canvas, self._hides_padding(canvas))
            for column, entity in enumerate(entities):
                own, seen = (None if each is None else each[column :: len(entities)] for each in (embeds, visible))
                if self._own_lengths:
                    own, seen = without_padding(own, seen)
                encoded[f"entity_{entity}"] = canvas.per_sample(own)
                if seen is not None:
                    encoded[f"visible_{entity}"] = canvas.per_sample(seen)
        return encoded

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return the entities' texts and the rules of who sees whom.

        Args:
            encoded (`Mapping[str, torch.Tensor]`): What `encode` returned.
            step (`DenoisingStep`): The step.

        Returns:
            `Contribution`: `text` and `rules`; empty on the unconditional branch if `negative` is `None`.
        """
        if step.branch == "uncond" and self.negative is None:
            return Contribution()
        groups, rules = [], []
        for index in range(encoded["masks"].shape[1]):
            name = f"entity_{index}"
            tokens, visible = encoded[name], encoded.get(f"visible_{index}")
            if step.branch == "uncond":
                tokens, visible = step.prompt.hidden_states, step.prompt.mask
            groups.append(text_group(name, tokens, step))
            rules += entity_rules(name, encoded["masks"][:, index])
            rules += [] if visible is None else padding_rules(name, visible)
        return Contribution(text=groups, rules=rules)

    def _samples(self) -> list[tuple[Sequence[str], Sequence[RegionMask]]]:
        single = isinstance(self.prompts, str) or is_box(self.masks)
        if single or not all(isinstance(given, (list, tuple)) for given in (self.prompts, self.masks)):
            raise ValueError(
                f"`prompts` of EntityRegions and `masks` of EntityRegions must be lists, got "
                f"{type(self.prompts).__name__} and {type(self.masks).__name__}. Put a single box or image into a "
                f"list, too."
            )
        kinds = {isinstance(prompt, str) for prompt in self.prompts}
        if len(kinds) > 1:
            raise ValueError("`prompts` of EntityRegions mixes texts and lists of texts. Nest all of them or none.")
        if kinds != {False}:
            return [(self.prompts, self.masks)]  # type: ignore[list-item]
        if len(self.prompts) != len(self.masks):
            raise ValueError(
                f"`prompts` of EntityRegions are for {len(self.prompts)} samples, but `masks` of EntityRegions for "
                f"{len(self.masks)}."
            )
        if not all(isinstance(part, (list, tuple)) and not is_box(part) for part in (*self.prompts, *self.masks)):
            raise TypeError(
                "`prompts` of EntityRegions and `masks` of EntityRegions must be nested alike: one list for each "
                "prompt of the batch."
            )
        return list(zip(self.prompts, self.masks))  # type: ignore[arg-type]

    @property
    def num_entities(self) -> int:
        """Entities of the sample that has most."""
        return max(len(prompts) for prompts, _ in self._samples())

    @property
    def _own_lengths(self) -> bool:
        return self.max_sequence_length == AUTO

    def _hides_padding(self, canvas: Canvas) -> bool:
        return self._own_lengths or (canvas.mask_padding if self.mask_padding is None else self.mask_padding)

    def _lengths(self, default: int | None) -> list[int]:
        if self.max_sequence_length is None or self._own_lengths:
            return [] if default is None else [default] * self.num_entities
        what, given = "`max_sequence_length` of EntityRegions", self.max_sequence_length
        if isinstance(given, str):
            raise ValueError(f"{what} is {given!r}. Give a number of tokens, one per entity, or {AUTO!r}.")
        if not isinstance(given, (list, tuple)):
            return [read_count(what, given, 1, 512)] * self.num_entities
        if len(given) != self.num_entities:
            raise ValueError(f"{what} has {len(given)} numbers for {self.num_entities} entities.")
        return [read_count(what, length, 1, 512) for length in given]

    def _token_masks(self, masks: Sequence[RegionMask], canvas: Canvas) -> torch.Tensor:
        tokens = torch.zeros(self.num_entities, canvas.num_tokens, dtype=torch.bool)
        for index, mask in enumerate(masks):
            tokens[index] = mask_to_tokens(mask, canvas, "`masks` of EntityRegions")
            if not tokens[index].any():
                logger.warning(
                    f"The mask of entity {index} covers no token of the {canvas.width} x {canvas.height} canvas, so "
                    f"its prompt changes nothing. A token is {canvas.token_size} pixels wide; white is inside."
                )
        return tokens


def without_padding(tokens: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cut texts off where the longest of them ends.

    Args:
        tokens (`torch.Tensor` of shape `(samples, length, width)`): Hidden states.
        visible (`torch.Tensor` of shape `(samples, length)`): Where they are not padding, boolean.

    Returns:
        `tuple[torch.Tensor, torch.Tensor or None]`: both, shorter; no second one if no padding is left.
    """
    longest = int(visible.sum(dim=1).max())
    tokens, visible = tokens[:, :longest], visible[:, :longest]
    return tokens, None if bool(visible.all()) else visible


def entity_rules(name: str, mask: torch.Tensor) -> list[AttentionRule]:
    """Return the attention rules of one entity.

    Args:
        name (`str`): Name of the entity's text group.
        mask (`torch.Tensor` of shape `(1 or batch_size, target_length)`): Its tokens, boolean.

    Returns:
        `list[AttentionRule]`
    """
    return [
        AttentionRule(name, "target", mask[:, None, :]),
        AttentionRule("target", name, mask[:, :, None]),
        AttentionRule(name, "text/*", False),
        AttentionRule("text/*", name, False),
        AttentionRule(name, "reference/*", False),
        AttentionRule("reference/*", name, False),
    ]
