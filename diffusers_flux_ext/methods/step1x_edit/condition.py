"""Step1X-Edit: a picture edited by an instruction that a language model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..._compat import execution_device
from ...canvas import Canvas, encode_image, pack_latents
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep, PromptEmbeds
from ...guidance import combine_velocities
from ...inputs.qwen_vl import list_texts
from ...inputs.vision import list_pictures, to_pil
from ...sequence import Contribution, TokenGroup
from . import INSTRUCTION_TOKENS
from .connector import Step1XConnector, Step1XContext
from .instructions import encode_instructions


_PREPARED = "prepared."


@dataclass(frozen=True, eq=False)
class Step1XInstruction(FluxCondition):
    """An edit by an instruction, Step1X-Edit ([paper](https://huggingface.co/papers/2504.17761)).

    The connector's tokens take the prompt's place in both branches of classifier-free guidance, and the picture
    becomes a reference.

    Args:
        connector (`Step1XConnector`): On the pipeline's device and of its data type.
        image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them):
            The picture to edit, or one per prompt; of any size and mode, floats in [0, 1] or integers up to 255. It is
            stretched to the canvas by Lanczos.
        instruction (`str` or `Sequence[str]`, *optional*): What to do, or one per prompt.
        negative_instruction (`str` or `Sequence[str]`, defaults to `""`):
            What the unconditional branch is told; encoded only if there is one.
        cut_at_apostrophes (`bool`, defaults to `True`):
            Quoted text is tokenised character by character, and `'` counts as a quote as published, also the one of
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
        ValueError: if there is no picture or no instruction, or a mask has no embeddings.
    """

    own_placement = ("mllm",)

    connector: Step1XConnector
    image: Any
    instruction: str | Sequence[str] | None = None
    negative_instruction: str | Sequence[str] = ""
    cut_at_apostrophes: bool = True
    rescale_above: float | None = None
    rescale_power: float = 0.4
    instruction_embeds: torch.Tensor | None = None
    instruction_mask: torch.Tensor | None = None
    negative_instruction_embeds: torch.Tensor | None = None
    negative_instruction_mask: torch.Tensor | None = None
    mllm: Any = None
    mllm_processor: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.connector, Step1XConnector):
            raise TypeError(
                f"`connector` is a {type(self.connector).__name__}; expected a `Step1XConnector`, for example from "
                f"`Step1XConnector.from_single_file('step1x-edit-i1258.safetensors')`."
            )
        if not list_pictures(self.image):
            raise ValueError("Step1X-Edit needs a picture to edit, but `image` holds none.")
        if (self.instruction is None) == (self.instruction_embeds is None):
            raise ValueError("Give either `instruction` or `instruction_embeds` to Step1X-Edit, and not both.")
        for name in ("instruction", "negative_instruction"):
            embeds, mask = getattr(self, f"{name}_embeds"), getattr(self, f"{name}_mask")
            check_embeds(name, embeds, mask, self.connector.config.in_channels)

    def demand(self, prompt_tokens: int) -> Demand:
        """The instruction in the prompt's place, and the image as a reference."""
        given = (self.instruction_embeds, self.negative_instruction_embeds)
        lengths = [INSTRUCTION_TOKENS if each is None else each.shape[1] for each in given]
        return Demand(prompt_tokens=max(lengths), canvases=1)

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Encode the picture with the VAE and the instructions with the language model.

        Args:
            pipe (`Encoders`): Gives the VAE, and the language model where the condition has none.
            canvas (`Canvas`): Gives size, batch, device and data type, and whether there is an unconditional branch.

        Returns:
            `dict[str, torch.Tensor]`: `"reference"` `(1 or num_samples, num_tokens, 64)`, and for each branch
            `"<branch>.embeds"` `(1 or num_samples, length, 3584)` and `"<branch>.mask"` `(1 or num_samples, length)`,
            which comes as `"<branch>.seen"`, too, where the transformer shall see no padding.

        Raises:
            ValueError: if the numbers of pictures, instructions and prompts do not fit, or the language model is
                missing.
        """
        size = (canvas.width, canvas.height)
        pictures = [to_pil(each).resize(size, Image.Resampling.LANCZOS) for each in list_pictures(self.image)]
        # Before the language model, so that the VAE works while there is room.
        pixels = pipe.image_processor.preprocess(pictures, canvas.height, canvas.width)
        latents = encode_image(pipe.vae, pixels.to(execution_device(pipe.vae), pipe.vae.dtype))
        encoded = {"reference": pack_latents(canvas.per_sample(latents.to(canvas.device, canvas.dtype)))}
        for branch, name in {"cond": "instruction", "uncond": "negative_instruction"}.items():
            if branch == "cond" or canvas.guided:
                embeds, mask = self._embed(name, pipe, pictures)
                encoded[f"{branch}.embeds"] = canvas.per_sample(embeds.to(canvas.device, canvas.dtype))
                encoded[f"{branch}.mask"] = canvas.per_sample(mask.to(canvas.device))
                if canvas.mask_padding:
                    encoded[f"{branch}.seen"] = encoded[f"{branch}.mask"].cpu()
        return encoded

    def _embed(self, name: str, pipe: Encoders, pictures: Sequence[Image.Image]) -> tuple[torch.Tensor, torch.Tensor]:
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
        return encode_instructions(mllm, processor, list_texts(name, text), pictures, self.cut_at_apostrophes, name)

    def prepare(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Mapping[str, torch.Tensor]:
        """The half of the connector's work that no timestep enters."""
        context = self.connector(encoded[f"{step.branch}.embeds"], encoded[f"{step.branch}.mask"])
        return {_PREPARED + name: tensor for name, tensor in context._asdict().items()}

    def replace_prompt(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> PromptEmbeds:
        """The connector's tokens for this timestep, and its pooled prompt."""
        given = encoded if f"{_PREPARED}tokens" in encoded else self.prepare(encoded, step)
        context = Step1XContext(*(given[_PREPARED + name] for name in Step1XContext._fields))
        tokens, pooled = self.connector(context, timestep=step.timestep[: context.tokens.shape[0]])
        count = step.latents.shape[0]
        ids = step.latent_ids.new_zeros(tokens.shape[1], 3)
        seen = encoded.get(f"{step.branch}.seen")
        return PromptEmbeds(tokens.expand(count, -1, -1), pooled.expand(count, -1), ids, seen)

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """The picture's tokens, at the positions of the target's or one further on each axis."""
        # In float32: bfloat16 has no odd numbers above 256.
        ids = step.latent_ids.float() + self.connector.config.reference_offset
        return Contribution(reference=[TokenGroup("step1x_reference", encoded["reference"], ids)])

    def combine_velocities(
        self, step: DenoisingStep, cond: torch.Tensor, uncond: torch.Tensor, true_cfg_scale: float
    ) -> torch.Tensor | None:
        """Guidance with the norms of the differences rescaled, above the threshold."""
        if self.rescale_above is None or float(step.timestep[0]) <= self.rescale_above:
            return None
        return combine_velocities(cond, uncond, true_cfg_scale, norm_power=self.rescale_power)


def check_embeds(name: str, embeds: torch.Tensor | None, mask: torch.Tensor | None, width: int) -> None:
    """Raise a `ValueError` unless encoded instructions have the connector's width and their mask fits."""
    if embeds is None and mask is None:
        return
    if embeds is None:
        raise ValueError(f"`{name}_mask` came without `{name}_embeds`.")
    if embeds.ndim != 3 or embeds.shape[2] != width:
        raise ValueError(
            f"`{name}_embeds` has the shape {tuple(embeds.shape)}; expected (1 or prompts, length, {width}), the "
            f"width of the language model that the connector was trained with."
        )
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(f"`{name}_mask` is a tensor, 1 for tokens and 0 for padding, but {type(mask).__name__} came.")
    if mask is not None and mask.shape != embeds.shape[:2]:
        raise ValueError(
            f"`{name}_mask` has the shape {tuple(mask.shape)}; expected {tuple(embeds.shape[:2])}, as the embeddings."
        )
    if mask is not None and not bool(mask.bool().any(dim=1).all()):
        raise ValueError(f"`{name}_mask` hides all tokens of an instruction. Show one at least.")
