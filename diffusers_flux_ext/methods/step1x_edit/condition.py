"""Step1X-Edit: an image edited by an instruction that a language model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from ..._devices import execution_device
from ...canvas import Canvas, encode_image, pack_latents
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep, PromptEmbeds
from ...guidance import combine_velocities
from ...inputs.checks import check_flag, read_texts, shown
from ...inputs.images import ImageInputs
from ...inputs.numbers import check_embeds as check_values
from ...inputs.numbers import read_number
from ...inputs.qwen_vl import QwenVLProcessor, check_processor
from ...inputs.vision import check_single_image, list_images, to_pil
from ...sequence import Contribution, TokenGroup
from . import INSTRUCTION_TOKENS
from .connector import Step1XConnector, Step1XContext
from .instructions import encode_instructions


_PREPARED, _IMAGE = "prepared.", "`image` of Step1XInstruction"


@dataclass(frozen=True, eq=False)
class Step1XInstruction(FluxCondition):
    """An edit by an instruction, Step1X-Edit ([paper](https://huggingface.co/papers/2504.17761)).

    The connector's tokens replace the prompt in both branches of classifier-free guidance, and the image
    becomes a reference.

    Args:
        connector (`Step1XConnector`): On the pipeline's device and of its data type.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            The image to edit, or one per prompt; of any size and mode, floats in [0, 1] or integers up to 255. It is
            stretched to the canvas by Lanczos.
        instruction (`str` or `Sequence[str]`, *optional*): What to do, or one per prompt.
        negative_instruction (`str` or `Sequence[str]`, defaults to `""`):
            The instruction of the unconditional branch; encoded only if there is such a branch.
        cut_at_apostrophes (`bool`, defaults to `True`):
            Quoted text is tokenised character by character, and `'` counts as a quote as published, even in
            "dog's". With `False` only double quotes count.
        rescale_above (`float`, *optional*):
            At timesteps in [0, 1] above this, guidance is rescaled by [`combine_velocities`]; version 1.1 was
            published with 0.93. Never by default.
        rescale_power (`float`, defaults to 0.4): The power of the norm in it.
        instruction_embeds (`torch.Tensor` of shape `(1 or prompts, length, 3584)`, *optional*):
            Encoded instructions in place of `instruction`, see [`FluxStep1XEditPipeline.encode_instruction`].
        instruction_mask (`torch.Tensor` of shape `(1 or prompts, length)`, *optional*): Their tokens; all by default.
        negative_instruction_embeds, negative_instruction_mask: The same for the unconditional branch.
        mllm (`Qwen2_5_VLForConditionalGeneration`, *optional*): The language model; the pipeline's by default.
        mllm_processor (`QwenVLProcessor`, *optional*): Its processor; the pipeline's by default.

    Raises:
        TypeError: if `connector` is something else.
        ValueError: if there is no image or no instruction, or a mask has no embeddings.
    """

    own_placement = ("mllm",)

    connector: Step1XConnector
    image: ImageInputs
    instruction: str | Sequence[str] | None = None
    negative_instruction: str | Sequence[str] = ""
    cut_at_apostrophes: bool = True
    rescale_above: float | None = None
    rescale_power: float = 0.4
    instruction_embeds: torch.Tensor | None = None
    instruction_mask: torch.Tensor | None = None
    negative_instruction_embeds: torch.Tensor | None = None
    negative_instruction_mask: torch.Tensor | None = None
    mllm: Qwen2_5_VLForConditionalGeneration | None = None
    mllm_processor: QwenVLProcessor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.connector, Step1XConnector):
            raise TypeError(
                f"`connector` of Step1XInstruction is a {type(self.connector).__name__}; expected a "
                f"`Step1XConnector`, for example from "
                f"`Step1XConnector.from_single_file('step1x-edit-i1258.safetensors')`."
            )
        for image in list_images(self.image, _IMAGE):
            check_single_image(_IMAGE, image)
        if (self.instruction is None) == (self.instruction_embeds is None):
            raise ValueError(
                "Exactly one of `instruction` of Step1XInstruction and `instruction_embeds` of Step1XInstruction is "
                "required. Give one of them."
            )
        given = self.negative_instruction
        if self.negative_instruction_embeds is not None and not (
            given is None or (isinstance(given, str) and not given)
        ):
            raise ValueError(
                "`negative_instruction` of Step1XInstruction and `negative_instruction_embeds` of Step1XInstruction "
                "were both given. Give one of them."
            )
        check_flag("`cut_at_apostrophes` of Step1XInstruction", self.cut_at_apostrophes)
        if self.rescale_above is not None:
            read_number("`rescale_above` of Step1XInstruction", self.rescale_above, 0, 1)
        read_number("`rescale_power` of Step1XInstruction", self.rescale_power, 0, 10)
        if self.mllm is not None and not hasattr(self.mllm, "generate"):
            raise TypeError(f"`mllm` of Step1XInstruction must be a language model, got {shown(self.mllm)}.")
        check_processor("`mllm_processor` of Step1XInstruction", self.mllm_processor)
        for name in ("instruction", "negative_instruction"):
            embeds, mask = getattr(self, f"{name}_embeds"), getattr(self, f"{name}_mask")
            if getattr(self, name) is not None:
                read_texts(f"`{name}` of Step1XInstruction", getattr(self, name))
            check_embeds(name, embeds, mask, self.connector.config.in_channels)

    def demand(self, prompt_tokens: int) -> Demand:
        """Return the instruction in the prompt's place, and the image as a reference."""
        given = (self.instruction_embeds, self.negative_instruction_embeds)
        lengths = [INSTRUCTION_TOKENS if each is None else each.shape[1] for each in given]
        return Demand(prompt_tokens=max(lengths), canvases=1)

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Encode the image with the VAE and the instructions with the language model.

        Args:
            pipe (`Encoders`): Gives the VAE, and the language model where the condition has none.
            canvas (`Canvas`): Gives size, batch, device and data type, and whether there is an unconditional branch.

        Returns:
            `dict[str, torch.Tensor]`: `"reference"` `(1 or num_samples, num_tokens, 64)`, and for each branch
            `"<branch>.embeds"` `(1 or num_samples, length, 3584)` and `"<branch>.mask"` `(1 or num_samples, length)`,
            which comes as `"<branch>.seen"`, too, if padding is hidden from the transformer.

        Raises:
            ValueError: if the numbers of images, instructions and prompts do not fit, or the language model is
                missing.
        """
        size = (canvas.width, canvas.height)
        images = [
            to_pil(each, _IMAGE).resize(size, Image.Resampling.LANCZOS) for each in list_images(self.image, _IMAGE)
        ]
        # Before the language model, so that the VAE works while there is room.
        pixels = pipe.image_processor.preprocess(images, canvas.height, canvas.width)
        latents = encode_image(pipe.vae, pixels.to(execution_device(pipe.vae), pipe.vae.dtype))
        encoded = {"reference": pack_latents(canvas.per_sample(latents.to(canvas.device, canvas.dtype), _IMAGE))}
        for branch, name in {"cond": "instruction", "uncond": "negative_instruction"}.items():
            if branch == "cond" or canvas.guided:
                embeds, mask = self._embed(name, pipe, images)
                given = f"{name}_embeds" if getattr(self, f"{name}_embeds") is not None else name
                what = f"`{given}` of {type(self).__name__}"
                encoded[f"{branch}.embeds"] = canvas.per_sample(embeds.to(canvas.device, canvas.dtype), what)
                encoded[f"{branch}.mask"] = canvas.per_sample(mask.to(canvas.device), what)
                if canvas.mask_padding:
                    encoded[f"{branch}.seen"] = encoded[f"{branch}.mask"].cpu()
        return encoded

    def _embed(self, name: str, pipe: Encoders, images: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, mask = getattr(self, f"{name}_embeds"), getattr(self, f"{name}_mask")
        if embeds is not None:
            return embeds, torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        text = getattr(self, name)
        mllm, processor = (
            getattr(self, part) if getattr(self, part) is not None else getattr(pipe, part, None)
            for part in ("mllm", "mllm_processor")
        )
        if mllm is None or processor is None:
            raise ValueError(
                f"There is no `mllm` or no `mllm_processor` to encode `{name}`. Give Qwen2.5-VL and its "
                f"`QwenVLProcessor`, or `{name}_embeds`."
            )
        what = f"`{name}` of Step1XInstruction"
        embeds, mask = encode_instructions(
            mllm, processor, read_texts(what, text), images, self.cut_at_apostrophes, what
        )
        width = self.connector.config.in_channels
        if embeds.shape[-1] != width:
            raise ValueError(
                f"The language model that encodes {what} is {embeds.shape[-1]} wide, but the `connector` takes "
                f"{width}. Use the model that it was trained with, Qwen2.5-VL-7B (3584 wide) for the released ones."
            )
        return embeds, mask

    def prepare(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Mapping[str, torch.Tensor]:
        """Run the part of the connector that does not depend on the timestep."""
        context = self.connector(encoded[f"{step.branch}.embeds"], encoded[f"{step.branch}.mask"])
        return {_PREPARED + name: tensor for name, tensor in context._asdict().items()}

    def replace_prompt(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> PromptEmbeds:
        """Return the connector's tokens for this timestep, and its pooled prompt."""
        given = encoded if f"{_PREPARED}tokens" in encoded else self.prepare(encoded, step)
        context = Step1XContext(*(given[_PREPARED + name] for name in Step1XContext._fields))
        tokens, pooled = self.connector(context, timestep=step.timestep[: context.tokens.shape[0]])
        count = step.latents.shape[0]
        ids = step.latent_ids.new_zeros(tokens.shape[1], 3)
        seen = encoded.get(f"{step.branch}.seen")
        return PromptEmbeds(tokens.expand(count, -1, -1), pooled.expand(count, -1), ids, seen)

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return the image's tokens, at the positions of the target's or one further on each axis."""
        # In float32: bfloat16 has no odd numbers above 256.
        ids = step.latent_ids.float() + self.connector.config.reference_offset
        return Contribution(reference=[TokenGroup("step1x_reference", encoded["reference"], ids)])

    def combine_velocities(
        self, step: DenoisingStep, cond: torch.Tensor, uncond: torch.Tensor, true_cfg_scale: float
    ) -> torch.Tensor | None:
        """Rescale the norms of the differences in guidance, above the threshold."""
        if self.rescale_above is None or float(step.timestep[0]) <= self.rescale_above:
            return None
        return combine_velocities(cond, uncond, true_cfg_scale, norm_power=self.rescale_power)


def check_embeds(name: str, embeds: Any, mask: Any, width: int) -> None:
    """Raise an error unless encoded instructions have the connector's width and their mask fits."""
    what, masked = (f"`{name}_{part}` of Step1XInstruction" for part in ("embeds", "mask"))
    if embeds is None and mask is None:
        return
    if embeds is None:
        raise ValueError(f"{masked} was given without {what}. Give both or neither.")
    shape = f"(1 or prompts, length, {width}), of the width of the language model that the connector was trained with"
    check_values(what, embeds, shape, None, None, width)
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or mask.is_complex() or mask.layout is not torch.strided or mask.is_meta:
        raise TypeError(f"{masked} is a dense tensor, 1 for tokens and 0 for padding, got {shown(mask)}.")
    if mask.shape != embeds.shape[:2]:
        raise ValueError(f"{masked} has the shape {tuple(mask.shape)}; expected {tuple(embeds.shape[:2])}, as {what}.")
    if not bool((mask == mask.bool()).all()):
        raise ValueError(f"{masked} must hold 1 for tokens and 0 for padding, and nothing else.")
    if not bool(mask.bool().any(dim=1).all()):
        raise ValueError(f"{masked} hides all tokens of an instruction. Leave at least one visible.")
