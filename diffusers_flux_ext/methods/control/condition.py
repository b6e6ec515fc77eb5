"""ControlNets: structure from an image, any number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import FluxControlNetModel

from ...canvas import Canvas
from ...condition import Encoders
from ...denoise import DenoisingStep
from ...former_arguments import former_arguments
from ...inputs.checks import check_generators, shown
from ...inputs.images import ImageInputs, read_images
from ...inputs.masks import RegionMask, check_regions
from ...sequence import Contribution
from .image import encode_control_image
from .residuals import (
    FORMER_NEGATIVE,
    ControlNetCondition,
    Negative,
    mask_channels,
    region_weights,
    residual_contribution,
)


UNION_MODES = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "lq": 6, "low quality": 6}
"""Names of the modes of InstantX' Union-alpha and Shakker Labs' Union-Pro; further numbers are untrained there."""


@former_arguments(FORMER_NEGATIVE, mask_region="region")
@dataclass(frozen=True, eq=False)
class ControlNetImage(ControlNetCondition):
    """A ControlNet ([paper](https://huggingface.co/papers/2302.05543)) and its control image.

    Several run at once: their residuals are summed. Residuals reach the image that is drawn only, never references,
    and are spread over as many blocks as the base model has. The ControlNet sees the prompt, or what replaces it, with
    the text that other conditions append to it (attribute values, Redux, LoRA embeddings) and without padding that the
    call hides; it sees no text of entities.

    Args:
        controlnet (`FluxControlNetModel` or [`FluxExtControlNetModel`]):
            The ControlNet, with one input for its image: a VAE latent, a latent and a mask (inpainting) or pixels
            (XLabs).
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            The control image, or one per prompt. It is stretched to the canvas, PIL images by Lanczos, arrays and
            tensors by nearest neighbour. Floats in [0, 1] or integers up to 255. A tensor with 16 channels is taken
            as scaled VAE latents.
        scale (`float` or `Sequence[float]`, defaults to 1.0):
            Factor of the residuals; one number, or one per block of the ControlNet, double blocks first. 0 disables
            the condition.
        start (`float`, defaults to 0.0): Start of the window, as a fraction of the steps.
        end (`float`, defaults to 1.0): End of the window, as a fraction of the steps.
        mode (`int` or `str`, *optional*):
            What the image shows, for union ControlNets: a name of `UNION_MODES` or a number.
        inpaint_mask (`RegionMask` or a list of them, *optional*):
            For inpainting ControlNets, which need it: white is redrawn. The image is black there.
        region (`RegionMask` or a list of them, *optional*): Where the residuals are added; everywhere by default.
        negative (`"same"`, `"own"` or `None`, defaults to `"same"`):
            What the unconditional branch gets: the same residuals as the conditional one, as in diffusers, which
            costs nothing; residuals of its own, computed with the negative prompt; or none.
        generator (`torch.Generator` or a list of one per sample, *optional*):
            Sample the image's latents with it, as diffusers' pipelines do. By default their mean is taken.

    Raises:
        TypeError: if `controlnet` is not a FLUX ControlNet, or an argument has another type.
        ValueError: if an argument is out of range, or does not belong to this kind of ControlNet.
    """

    sees_whole_prompt = True

    controlnet: FluxControlNetModel = field(repr=False)
    image: ImageInputs = field(repr=False)
    scale: float | Sequence[float] = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | str | None = None
    inpaint_mask: RegionMask | Sequence[RegionMask] | None = field(default=None, repr=False)
    region: RegionMask | Sequence[RegionMask] | None = field(default=None, repr=False)
    negative: Negative = "same"
    generator: torch.Generator | Sequence[torch.Generator] | None = None

    def __post_init__(self) -> None:
        self.check_residual_fields()
        self._mode_number()
        if self.image is None:
            raise ValueError("`image` of ControlNetImage is None. Give an image, or leave the condition out.")
        if (self.inpaint_mask is not None) != (self._extra_channels > 0):
            raise ValueError(
                f"The ControlNet takes {self._extra_channels} channels for a mask, but `inpaint_mask` of "
                f"ControlNetImage {'is missing' if self.inpaint_mask is None else 'was given'}. Inpainting "
                f"ControlNets need it, and only they take it; to restrict any other one, use `region`."
            )
        # Only the VAE, which the condition does not have, knows the number of latent channels.
        read_images("`image` of ControlNetImage", self.image, self.controlnet.config.in_channels // 4)
        for name in ("inpaint_mask", "region"):
            if getattr(self, name) is not None:
                check_regions(f"`{name}` of ControlNetImage", getattr(self, name))
        if self.generator is not None:
            check_generators("`generator` of ControlNetImage", self.generator)
        if self.generator is not None and self.controlnet.input_hint_block is not None:
            raise ValueError(
                "`generator` of ControlNetImage samples latents, but XLabs' ControlNets take pixels. Leave it out."
            )

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Encode the image.

        Args:
            pipe (`Encoders`): Gives the VAE, the image processor and the guidance scale.
            canvas (`Canvas`): Gives the size, the batch and the data type.

        Returns:
            `dict[str, torch.Tensor]`: `"control"` `(1 or num_samples, num_tokens, C)`, or `(1 or num_samples, 3,
            height, width)` for XLabs' ControlNets; `"guidance"` `(1,)`; `"mode"` `(1,)` of union ControlNets; and
            `"weights"`, see [`region_weights`], if there is a `region`.

        Raises:
            ValueError: if the ControlNet belongs to a transformer of another size, or the numbers of images, masks
                and prompts differ.
        """
        self.check_fits_pipeline(pipe)
        encoded = {
            "control": encode_control_image(
                pipe,
                canvas,
                self.controlnet,
                self.image,
                self.inpaint_mask,
                self.generator,
                ("`image` of ControlNetImage", "`inpaint_mask` of ControlNetImage"),
            ),
            # Outside a call, as in training, the step provides its own.
            "guidance": torch.tensor([getattr(pipe, "guidance_scale", 1.0)], device=canvas.device),
        }
        mode = self._mode_number()
        if mode is not None:
            encoded["mode"] = torch.tensor([mode], device=canvas.device)
        if self.region is not None:
            encoded["weights"] = region_weights("`region` of ControlNetImage", self.region, canvas)
        return encoded

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return the residuals of this step; empty outside the window."""
        if self.is_silent(step):
            return Contribution()
        return residual_contribution(
            self.controlnet,
            step,
            encoded["control"],
            context=step.prompt,
            guidance=encoded["guidance"] if step.guidance is None else step.guidance,
            scale=self.scale,
            mode=encoded.get("mode"),
            weights=encoded.get("weights"),
        )

    @property
    def _extra_channels(self) -> int:
        return mask_channels(self.controlnet)

    def _mode_number(self) -> int | None:
        count = self.controlnet.config.num_mode if self.controlnet.union else 0
        if not count and self.mode is None:
            return None
        if not count:
            raise ValueError(f"`mode` of ControlNetImage is {shown(self.mode)}, but this ControlNet is not a union.")
        names = ", ".join(f"{name!r} ({number})" for name, number in UNION_MODES.items() if number < count)
        number = UNION_MODES.get(self.mode, -1) if isinstance(self.mode, str) else self.mode
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
            raise ValueError(
                f"`mode` of ControlNetImage says what the image of a union ControlNet shows: {names}, or a number "
                f"below {count}; got {shown(self.mode)}."
            )
        return number
