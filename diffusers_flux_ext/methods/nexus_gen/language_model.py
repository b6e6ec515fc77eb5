"""Nexus-Gen's language model: Qwen2.5-VL that also predicts embeddings of images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import ModelOutput

from ..._devices import execution_device
from ...inputs.qwen_vl import IMAGE_SPAN, chat_text, known_inputs, qwen_vl_inputs
from .prompts import MAX_PIXELS, MIN_PIXELS, check_options


NUM_IMAGE_TOKENS = 81
QUESTION = "Please give a brief description of the image."
# transformers 4 named the parts of the published checkpoint; later versions nest them. Spelled as there, because these
# patterns are reversed for saving.
RENAMED = {"^visual": "model.visual", r"^model(?!\.(language_model|visual))": "model.language_model"}


@dataclass
class NexusGenOutput(ModelOutput):
    """The language model's output for an image to be drawn.

    Args:
        image_embeds (`torch.Tensor` of shape `(1, num_image_tokens, hidden_size)`): Of the image to be drawn.
        reference_embeds (`torch.Tensor` of shape `(1, reference_length, hidden_size)`, *optional*):
            Of the given image, from the vision model.
    """

    image_embeds: torch.Tensor | None = None
    reference_embeds: torch.Tensor | None = None


class NexusGenModel(Qwen2_5_VLForConditionalGeneration):
    r"""The language model of Nexus-Gen V2 ([paper](https://huggingface.co/papers/2504.21356)).

    It is transformers' Qwen2.5-VL with learned inputs for the tokens of an image to be drawn, and a head that predicts
    that image's embeddings. `from_pretrained` reads the published folder
    ([model](https://modelscope.cn/models/DiffSynth-Studio/Nexus-GenV2)); everything else, `generate` included, is
    inherited from `Qwen2_5_VLForConditionalGeneration`.

    Args:
        config (`Qwen2_5_VLConfig`):
            The model's config. An entry `num_image_tokens`, a square number, replaces the 81 of the released model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.get_text_config().hidden_size
        self.vision_head = nn.Linear(width, width, bias=False)
        self.image_prefill_embeds = nn.Embedding(getattr(config, "num_image_tokens", NUM_IMAGE_TOKENS), width)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> NexusGenModel:
        """See `PreTrainedModel.from_pretrained`; the published names are mapped to those of current transformers."""
        kwargs.setdefault("key_mapping", RENAMED)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image to be drawn, `(18, 18)` in the released model."""
        side = math.isqrt(self.image_prefill_embeds.num_embeddings) * self.config.vision_config.spatial_merge_size
        return side, side

    def blank_image(self) -> Image.Image:
        """Return a white image in place of the one to be drawn; only its size matters."""
        rows, columns = (side * self.config.vision_config.patch_size for side in self.image_grid)
        return Image.new("RGB", (columns, rows), (255, 255, 255))

    @wraps(Qwen2_5_VLForConditionalGeneration.forward)
    def forward(self, *args: Any, predict_image: bool = False, **kwargs: Any) -> Any:
        """As the base class; with `predict_image`, a [`NexusGenOutput`] for inputs whose last image is blank."""
        # A mode of `forward` rather than a method of its own: offloading hooks act on `forward` only.
        return self._predict_image(**kwargs) if predict_image else super().forward(*args, **kwargs)

    def _predict_image(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor,
        image_grid_thw: torch.Tensor,
        **inputs: torch.Tensor,
    ) -> NexusGenOutput:
        number = self.image_prefill_embeds.num_embeddings
        is_image = input_ids[0] == self.config.image_token_id
        places = is_image.nonzero()[:, 0]
        target, given = places[-number:], places[:-number]
        embeds = self.get_input_embeddings()(input_ids)
        embeds[0, target] = self.image_prefill_embeds(torch.arange(number, device=embeds.device)).to(embeds)
        reference = None
        if len(given):
            reference = self._see(pixel_values, image_grid_thw[:-1])
            embeds[0, given] = reference.to(embeds)
        positions = self._positions(input_ids, image_grid_thw, attention_mask, inputs)
        hidden_states = self.model(
            inputs_embeds=embeds, position_ids=positions, attention_mask=attention_mask, use_cache=False
        )[0]
        # The model predicts at each position what comes at the next one.
        predicted = self.vision_head(hidden_states[:, target - 1])
        return NexusGenOutput(predicted, None if reference is None else reference[None])

    def _see(self, pixel_values: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """Return embeddings `(length, hidden_size)` of the first images, those of these grids."""
        patches = pixel_values[: int(grids.prod(-1).sum())]
        features: Any = self.get_image_features(patches, grids)
        features = getattr(features, "pooler_output", features)
        return features if isinstance(features, torch.Tensor) else torch.cat(list(features))

    def _positions(
        self, input_ids: torch.Tensor, grids: torch.Tensor, attention_mask: torch.Tensor, inputs: dict[str, Any]
    ) -> torch.Tensor:
        names = {"input_ids": input_ids, "image_grid_thw": grids, "attention_mask": attention_mask, **inputs}
        return self.model.get_rope_index(**names)[0]

    @torch.no_grad()
    def describe(
        self,
        image: Any = None,
        question: str = QUESTION,
        processor: Any = None,
        *,
        max_new_tokens: int = 1024,
        max_pixels: int = MAX_PIXELS,
        **kwargs: Any,
    ) -> str:
        """Answer a question about an image.

        Args:
            image (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`, *optional*): The image; none for a plain chat.
            question (`str`, *optional*): The question; asks for a brief description by default.
            processor (`QwenVLProcessor`): The processor.
            max_new_tokens (`int`, defaults to 1024): Length of the answer in tokens.
            max_pixels (`int`, defaults to 262640): Maximum number of pixels of the image, which is reduced to it.
            kwargs: Passed on to `generate`, for example `do_sample=True`.

        Returns:
            `str`: the answer.

        Raises:
            ValueError: if there is no processor, the image is more than 200 times as long as wide, the question has
                image tokens, or `max_pixels` is below 3136.
        """
        if processor is None:
            raise ValueError(
                "`processor` is missing: give the model's `QwenVLProcessor`, or ask a pipeline that has it."
            )
        check_options(max_pixels=max_pixels)
        images = [] if image is None else [image]
        text = chat_text(IMAGE_SPAN * len(images) + question)
        inputs = qwen_vl_inputs(processor, text, images, MIN_PIXELS, max_pixels)
        device = execution_device(self)
        moved = {name: value.to(device) for name, value in known_inputs(inputs).items()}
        # The model can also begin an image in its answer, which `generate` cannot draw.
        kwargs.setdefault("suppress_tokens", self._image_tokens())
        tokens = self.generate(**moved, max_new_tokens=max_new_tokens, **kwargs)
        return processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _image_tokens(self) -> list[int]:
        names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
        return [getattr(self.config, name) for name in names]
