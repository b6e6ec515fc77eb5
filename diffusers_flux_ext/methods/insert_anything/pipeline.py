"""Insert-Anything as a named pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from diffusers import (
    ReduxImageEncoder,
)
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from PIL import Image

from ...condition import FluxCondition, check_conditions
from ...former_arguments import former_arguments
from ...inputs.checks import check_choice
from ...inputs.images import ImageInputs
from ...inputs.masks import RegionMask
from ...inputs.numbers import read_number
from ...pipeline.call_inputs import canvas_size, count_prompts
from ...pipeline.components import extends_call, extends_init, named_arguments
from ...pipeline.conditioned import FluxConditionedPipeline
from ..fill.condition import FillMask
from ..redux.condition import ReduxImages
from .diptych import Diptych, paste_panel, read_diptychs


# Those of the published weights and of diffusers' `FluxFillPipeline`.
_DEFAULTS: dict[str, Any] = {"num_inference_steps": 50, "guidance_scale": 30.0}
_HEIGHT = 768


class FluxInsertAnythingPipeline(FluxConditionedPipeline):
    r"""Insertion of a reference image's object into a source image.

    This is Insert-Anything ([paper](https://huggingface.co/papers/2504.15009)) with FLUX.1-Fill, Redux and the
    method's LoRA. The object and the part of the source around the mask are side by side on a canvas twice as wide as
    high; its right half is drawn ([`FillMask`]) with the object as a part of the prompt ([`ReduxImages`]), and pasted
    back.

    Args:
        scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer:
            As for its base class, those of FLUX.1-Fill-dev. The text encoders may be `None`: no prompt is needed.
        image_encoder (`SiglipVisionModel`, *optional*): Redux' vision model.
        feature_extractor (`SiglipImageProcessor`, *optional*): Its processor; made from its config by default.
        image_embedder ([`~diffusers.ReduxImageEncoder`], *optional*): Redux' embedder.

    Example:
    ```py
    >>> import torch
    >>> from diffusers.utils import load_image
    >>> from diffusers_flux_ext import FluxInsertAnythingPipeline, load_redux_embedder
    >>> from transformers import SiglipVisionModel

    >>> redux = "FLUX.1-Redux-dev"
    >>> pipe = FluxInsertAnythingPipeline.from_pretrained(
    ...     "black-forest-labs/FLUX.1-Fill-dev",
    ...     image_encoder=SiglipVisionModel.from_pretrained(f"{redux}/image_encoder", dtype=torch.bfloat16),
    ...     image_embedder=load_redux_embedder(redux, torch_dtype=torch.bfloat16),
    ...     dtype=torch.bfloat16,
    ... )
    >>> pipe.load_lora_weights("WensongSong/Insert-Anything")
    >>> pipe.enable_model_cpu_offload()
    >>> image = pipe(
    ...     source_image=load_image("person.png"),
    ...     source_mask=load_image("person_mask.png"),
    ...     reference_image=load_image("shirt.png"),
    ...     reference_mask=load_image("shirt_mask.png"),
    ... ).images[0]
    ```
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->image_embedder->transformer->vae"
    _optional_components = [*FluxConditionedPipeline._optional_components, "image_embedder"]

    @extends_init(FluxConditionedPipeline)
    def __init__(
        self,
        *args: Any,
        image_embedder: ReduxImageEncoder = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.register_modules(image_embedder=image_embedder)

    @extends_call(FluxConditionedPipeline, **_DEFAULTS)
    @former_arguments(redux_strength="redux_scale")
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        source_image: ImageInputs | None = None,
        source_mask: RegionMask | Sequence[RegionMask] | None = None,
        reference_image: ImageInputs | None = None,
        reference_mask: RegionMask | Sequence[RegionMask] | None = None,
        redux_scale: float = 1.0,
        paste_back: Literal["crop", "mask"] | None = "crop",
        conditions: Sequence[FluxCondition] | None = None,
        **kwargs: Any,
    ) -> FluxPipelineOutput | tuple:
        r"""Insert the reference's object into the source.

        Args:
            args, kwargs:
                As for [`FluxConditionedPipeline.__call__`]. `prompt` may be left out: the prompt is then zeros, with
                which the published weights were trained. `height` is that of the canvas, 768 by default, and `width`
                is twice as much.
            source_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                Where the object goes, of any size; a list gives one per prompt or, without a prompt, one per image.
                Without source and reference the pipeline is [`FluxConditionedPipeline`].
            source_mask (`RegionMask` or a list of them, *optional*):
                White is drawn, grown by six pixels.
            reference_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*):
                The object.
            reference_mask (`RegionMask` or a list of them, *optional*):
                White is the object; the whole image by default.
            redux_scale (`float`, *optional*, defaults to 1.0): Strength of the object as a part of the prompt.
            paste_back (`"crop"`, `"mask"` or `None`, *optional*, defaults to `"crop"`):
                Paste the whole part of the source that was on the canvas, as the original does; or only what the
                grown mask covers, so that everything else stays bit-equal; or return the canvas as it is.
            conditions (`Sequence[FluxCondition]`, *optional*): Further conditions, on the canvas.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`: images of the sources' sizes; with
            `output_type="latent"` the latents of the canvas.

        Raises:
            ValueError: if a component or an image is missing, a mask is empty, the reference shows no object, or
                sizes or numbers do not fit.
        """
        call = {**_DEFAULTS, **named_arguments(FluxConditionedPipeline, args, kwargs)}
        call["conditions"] = check_conditions(conditions)
        given = {"source_image": source_image, "source_mask": source_mask, "reference_image": reference_image}
        if reference_mask is None and all(value is None for value in given.values()):
            return super().__call__(**call)
        self._check(given, paste_back)
        read_number("`redux_scale`", redux_scale, 0, 1)
        call["height"], call["width"] = self._canvas(call.get("height"), call.get("width"))
        diptychs = read_diptychs(source_image, source_mask, reference_image, reference_mask, call["height"])
        self._add_prompt(call, len(diptychs))
        call["conditions"] = [*self._parts(diptychs, redux_scale), *call["conditions"]]
        output_type = call.get("output_type", "pil")
        if output_type == "latent" or paste_back is None:
            return super().__call__(**call)
        if output_type != "pil" and len({diptych.source.shape for diptych in diptychs}) > 1:
            raise ValueError(f"The sources differ in size, so they cannot be one {output_type!r} batch. Take 'pil'.")
        drawn = super().__call__(**{**call, "output_type": "pil", "return_dict": False})[0]
        images = self._paste(drawn, diptychs, paste_back, output_type)
        return FluxPipelineOutput(images=images) if call.get("return_dict", True) else (images,)

    def _check(self, given: dict[str, Any], paste_back: str | None) -> None:
        missing = [name for name, value in given.items() if value is None]
        if missing:
            raise ValueError(
                f"`{'`, `'.join(missing)}` of the call are missing: a source, its mask and a reference belong "
                f"together."
            )
        absent = [name for name in ("image_encoder", "image_embedder") if getattr(self, name) is None]
        if absent:
            raise ValueError(
                f"The pipeline has no {absent}, which see the reference. Pass those of FLUX.1-Redux-dev to "
                f"`from_pretrained` or `from_pipe`."
            )
        check_choice("`paste_back`", paste_back, ("crop", "mask", None))

    def _canvas(self, height: int | None, width: int | None) -> tuple[int, int]:
        if height and width and width != 2 * height:
            raise ValueError(
                f"The canvas holds two squares side by side, so `width` must be twice `height`, got {height} x "
                f"{width} (height x width). Give `height` alone."
            )
        height, _ = canvas_size(self, height or (width // 2 if width else _HEIGHT), None)
        return height, 2 * height

    def _add_prompt(self, call: dict[str, Any], num_diptychs: int) -> None:
        if call.get("prompt") is None and call.get("prompt_embeds") is None:
            config, dtype = self.transformer.config, (self.text_encoder_2 or self.transformer).dtype
            shapes = {
                "prompt_embeds": (num_diptychs, call.get("max_sequence_length", 512), config.joint_attention_dim),
                "pooled_prompt_embeds": (num_diptychs, config.pooled_projection_dim),
            }
            for name, shape in shapes.items():
                call[name] = torch.zeros(shape, dtype=dtype, device=self._execution_device)
            if call.get("mask_padding"):
                # The weights were trained with these zeros, so none of them is padding.
                call["prompt_embeds_mask"] = torch.ones(shapes["prompt_embeds"][:2], dtype=torch.bool)
        prompts = count_prompts(call.get("prompt"), call.get("prompt_embeds"))
        if num_diptychs not in (1, prompts):
            raise ValueError(
                f"`source_image`, `source_mask`, `reference_image` and `reference_mask` are for {num_diptychs} "
                f"images, but there are {prompts} prompts. Give one for all or one for each."
            )

    def _parts(self, diptychs: Sequence[Diptych], redux_scale: float) -> list[FluxCondition]:
        fill = FillMask(
            [diptych.image for diptych in diptychs], [diptych.mask for diptych in diptychs], paste_back=False
        )
        redux = ReduxImages(
            [[diptych.reference] for diptych in diptychs], redux_scale, image_embedder=self.image_embedder
        )
        return [fill, redux]

    def _paste(
        self,
        drawn: Sequence[Image.Image],
        diptychs: Sequence[Diptych],
        within: Literal["crop", "mask"],
        output_type: str,
    ) -> Any:
        repeats = len(drawn) // len(diptychs)
        images = []
        for index, canvas in enumerate(drawn):
            panel = canvas.crop((canvas.width // 2, 0, canvas.width, canvas.height))
            images.append(paste_panel(diptychs[index // repeats], panel, within))
        if output_type == "pil":
            return images
        arrays: np.ndarray = self.image_processor.pil_to_numpy(images)
        return arrays if output_type == "np" else self.image_processor.numpy_to_pt(arrays)
