"""The contract of a condition, one method's part in a denoising loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from .canvas import Canvas
from .demand import Demand
from .denoise import DenoisingStep, PromptEmbeds
from .former_condition import translate_former_names
from .sequence import Contribution


OUTSIDE_OF_MASK = "the pixels outside of the mask"
"""The value of `exclusive` of conditions that put the given image back there after decoding."""

REFERENCE_POSITIONS = "the positions of reference images"
"""The value of `exclusive` of conditions that give reference images rotary positions from t = 1 on."""


class Encoders(Protocol):
    """The parts of a pipeline, or of a stand-in, that a condition may use.

    Attributes:
        vae (`AutoencoderKL`): Encodes images.
        image_processor (`VaeImageProcessor`): Turns images into tensors in [-1, 1].
        transformer (`FluxTransformer2DModel`): A condition's modules have to fit its sizes; conditions never call it.
        image_encoder (`CLIPVisionModelWithProjection` or `SiglipVisionModel`, *optional*): A vision model.
        feature_extractor (`CLIPImageProcessor` or `SiglipImageProcessor`, *optional*): Its processor.
        guidance_scale (`float`): The embedded guidance of the call.
        encode_text (`Callable`): Encodes texts with T5.
    """

    vae: Any
    image_processor: Any
    transformer: Any
    image_encoder: Any
    feature_extractor: Any

    @property
    def guidance_scale(self) -> float:
        """The embedded guidance of the call."""

    def encode_text(
        self, texts: list[str], length: int, canvas: Canvas, mask_padding: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode texts with T5, and say where their padding is; see [`FluxConditionedPipeline.encode_text`]."""


@dataclass(frozen=True, eq=False)
class FluxCondition(ABC):
    """One method's part in a denoising loop. Subclasses are frozen dataclasses of user inputs and the module they use.

    A subclass writes `encode`, `contribute` and `demand`; everything else has a default. `encode` runs what is frozen
    and can be cached (text encoders, VAE); the condition's own, possibly trainable, module runs in `prepare` or
    `contribute`, so that training reaches it.
    """

    sees_whole_prompt: ClassVar[bool] = False
    """Whether the prompt of the step that `contribute` gets has the text that other conditions append to it, as a
    ControlNet's has (see `in_prompt` of [`TokenGroup`]). Such a condition comes after all others and appends none."""

    shared: ClassVar[tuple[str, ...]] = ()
    """Names of what `encode` returns without an entry per sample, such as rotary positions; globs. In training, the
    samples of a batch must agree on these tensors."""

    own_placement: ClassVar[tuple[str, ...]] = ()
    """Fields with modules that run in `encode` only, on a device and in a data type of their own."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        translate_former_names(cls, OUTSIDE_OF_MASK)

    @property
    def exclusive(self) -> str | None:
        """What only one condition of a call may decide, in words, for example [`OUTSIDE_OF_MASK`], or `None`.

        Two conditions with the same value are refused, even if they are of one class.
        """
        return None

    def encode(self, parts: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Turn the user's inputs into tensors, once per call.

        Args:
            parts (`Encoders`): Gives the text encoders, the VAE and the processors; a pipeline is one.
            canvas (`Canvas`): Size, batch, device and data type.

        Returns:
            `dict[str, torch.Tensor]`: plain tensors, of one entry for all prompts or one per sample.
        """
        return {}

    @abstractmethod
    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return what the condition adds to one call of the transformer.

        Args:
            encoded (`Mapping[str, torch.Tensor]`): What `encode` and `prepare` returned.
            step (`DenoisingStep`): The step; its branch is `"cond"` or `"uncond"`.

        Returns:
            `Contribution`: empty for a branch that the condition leaves alone.
        """

    def demand(self, prompt_tokens: int) -> Demand | None:
        """Return what the condition costs, for VRAM plans; its modules are found in its fields.

        Args:
            prompt_tokens (`int`): Text tokens of the prompt.

        Returns:
            `Demand`; `None`, the default, means unknown: plans then count one more prompt, with a warning.
        """
        return None

    def reuse(self, step: DenoisingStep) -> Hashable | None:
        """Return the key of a contribution; where it is the same, the same tensors are used again.

        Args:
            step (`DenoisingStep`): The step.

        Returns:
            `Hashable` or `None`: by default the branch, so `contribute` runs once per branch. `step.index` shares what
            was made for the conditional branch with the unconditional one; `None` makes it again at each step.
        """
        return step.branch

    def prepare(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Mapping[str, torch.Tensor]:
        """Run the part of the condition's own module that holds for all steps of a branch.

        It runs at the branch's first step. Later methods find these tensors in `encoded`, and work without them
        when called on their own, as in training.
        """
        return {}

    def replace_prompt(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> PromptEmbeds | None:
        """Return a prompt to use instead of the text encoders' at this step, or `None`. One condition per call may."""
        return None

    def combine_velocities(
        self, step: DenoisingStep, cond: torch.Tensor, uncond: torch.Tensor, true_cfg_scale: float
    ) -> torch.Tensor | None:
        """Return the guided velocity by the method's own rule, or `None` if it has none. One condition per call may.

        Args:
            step (`DenoisingStep`): The step of the conditional branch.
            cond (`torch.Tensor` of shape `(batch_size, target_length, channels)`): Velocity with the prompt.
            uncond (`torch.Tensor` of the same shape): Velocity with the negative prompt.
            true_cfg_scale (`float`): Scale of classifier-free guidance.

        Returns:
            `torch.Tensor` of the same shape, or `None`.
        """
        return None

    def after_step(
        self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep, latents: torch.Tensor
    ) -> torch.Tensor:
        """Return the latents `(batch_size, length, 64)` to continue with after the scheduler's step."""
        return latents

    def after_decode(self, encoded: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        """Return the images `(batch_size, 3, height, width)` in [-1, 1] to return after decoding."""
        return images


def check_conditions(conditions: Any) -> list[FluxCondition]:
    """Return the conditions as a list; raise an error that names a non-condition, or what may not be given twice."""
    if conditions is None:
        return []
    given = list(conditions) if isinstance(conditions, (list, tuple)) else [conditions]
    wrong = [type(condition).__name__ for condition in given if not isinstance(condition, FluxCondition)]
    if wrong:
        raise TypeError(
            f"`conditions` takes conditions such as `EntityRegions(...)`, but it holds {wrong}. Give a list of "
            f"`FluxCondition` instances."
        )
    claims: dict[str, list[str]] = {}
    for condition in given:
        if condition.exclusive is not None:
            claims.setdefault(condition.exclusive, []).append(type(condition).__name__)
    for claim, names in claims.items():
        if len(names) > 1:
            raise ValueError(
                f"Each of {' and '.join(names)} decides {claim}, so the last one would win. Leave all but one of them "
                f"out, join their inputs into one, or turn it off where a condition can (`paste_back=False`)."
            )
    return given
