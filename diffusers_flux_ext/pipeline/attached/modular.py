"""Conditions in the blocks of a modular pipeline of diffusers."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import InputParam, OutputParam

from ..._compat import modular_text_embeds
from ...condition import check_conditions
from ...encoded import EncodedConditions
from ...inputs.checks import shown
from .encoders import StockEncoders
from .loop import AttachedLoop
from .record import CallRecord
from .replacement import Replacement


BlocksT = TypeVar("BlocksT", bound=ModularPipelineBlocks)
_ENCODED = "encoded_conditions"
_CANVAS = ("height", "width", "batch_size", "dtype")


class _ModularEncoders(StockEncoders):
    """The [`Encoders`] of a modular pipeline, which has its guidance scale in the call's state."""

    def __init__(self, pipe: Any, guidance_scale: float) -> None:
        super().__init__(pipe)
        self.guidance_scale = guidance_scale

    def _get_t5_prompt_embeds(self, texts: list[str], max_sequence_length: int, device: torch.device) -> torch.Tensor:
        return modular_text_embeds(self._pipe, texts, max_sequence_length, device)


class _Around(ModularPipelineBlocks):
    """A block that runs another one with conditions; its inputs and outputs are those of the other one and more.

    Args:
        block (`ModularPipelineBlocks`): The other block.
    """

    more_inputs: tuple[str, ...] = ()
    more_outputs: tuple[str, ...] = ()

    def __init__(self, block: ModularPipelineBlocks) -> None:
        super().__init__()
        self.sub_blocks["block"] = block
        self.model_name = block.model_name

    @property
    def block(self) -> ModularPipelineBlocks:
        """The other block."""
        return self.sub_blocks["block"]

    @property
    def description(self) -> str:
        """What the other block says of itself."""
        return f"{self.block.description}\nConditions of diffusers_flux_ext take part."

    @property
    def expected_components(self) -> list[Any]:
        """The components of the other block."""
        return self.block.expected_components

    @property
    def inputs(self) -> list[InputParam]:
        """The inputs."""
        known = {each.name for each in self.block.inputs}
        return [*self.block.inputs, *(InputParam(name) for name in self.more_inputs if name not in known)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """The outputs."""
        return [*self.block.intermediate_outputs, *(OutputParam(name) for name in self.more_outputs)]


class ConditionsDenoiseStep(_Around):
    """Runs a denoising loop with the call's `conditions`, which it encodes first.

    Args:
        block (`ModularPipelineBlocks`): The block with the loop.
    """

    more_inputs = ("conditions", "initial_noise", "num_images_per_prompt", "max_sequence_length", "guidance_scale",
                   *_CANVAS)  # fmt: skip
    more_outputs = (_ENCODED,)

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the loop."""
        conditions = check_conditions(state.get("conditions"))
        if not conditions:
            state.set(_ENCODED, None)
            return self.block(components, state)
        encoders = _ModularEncoders(components, state.get("guidance_scale"))
        loop = AttachedLoop(components, conditions, _record(components, state), state.get("timesteps"), encoders)
        with loop.running():
            result = self.block(components, state)
        state.set(_ENCODED, loop.encoded)
        return result


class ConditionsDecodeStep(_Around):
    """Decodes latents, and lets conditions change the images: what [`InpaintRegion`] keeps is pasted back.

    Args:
        block (`ModularPipelineBlocks`): The block that decodes.
    """

    more_inputs = (_ENCODED,)

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Decode."""
        encoded: EncodedConditions | None = state.get(_ENCODED)
        if encoded is None:
            return self.block(components, state)
        pasting = Replacement(
            components.image_processor,
            "postprocess",
            lambda method, args, kwargs: method(encoded.after_decode(args[0]), *args[1:], **kwargs),
        )
        try:
            return self.block(components, state)
        finally:
            pasting.restore()


def _record(components: Any, state: Any) -> CallRecord:
    given = {name: state.get(name) for name in _CANVAS}
    images = state.get("num_images_per_prompt") or 1
    noise = state.get("initial_noise")
    return CallRecord(
        num_branches=1,
        num_images_per_prompt=images,
        max_sequence_length=state.get("max_sequence_length") or 512,
        latents={
            **given,
            "batch_size": given["batch_size"] * images,
            "num_channels_latents": components.num_channels_latents,
            "device": components._execution_device,
        },
        noise=state.get("latents") if noise is None else noise,
    )


def condition_blocks(blocks: BlocksT) -> BlocksT:
    """Return blocks of a modular FLUX.1 pipeline that take `conditions`, besides all that they take.

    Text to image, image to image and Kontext then draw what [`FluxConditionedPipeline`] draws with the same
    conditions.

    ```py
    pipe = condition_blocks(FluxAutoBlocks()).init_pipeline("black-forest-labs/FLUX.1-dev")
    pipe.load_components(dtype=torch.bfloat16)
    images = pipe(prompt="a garden", conditions=[EntityRegions(["a cat"], [(0.0, 0.0, 0.5, 1.0)])], output="images")
    ```

    Args:
        blocks (`ModularPipelineBlocks`): `FluxAutoBlocks`, `FluxKontextAutoBlocks`, or blocks made of them.

    Returns:
        `ModularPipelineBlocks`: a copy with conditions around the loop and the decoder.

    Raises:
        TypeError: if these are other blocks.
        ValueError: if the blocks have conditions already.
    """
    stages = getattr(blocks, "sub_blocks", {})
    is_flux = isinstance(blocks, ModularPipelineBlocks) and blocks.model_name in ("flux", "flux-kontext")
    if not is_flux or not {"denoise", "decode"} <= stages.keys() or "denoise" not in stages["denoise"].sub_blocks:
        raise TypeError(
            f"`blocks` must be blocks of FLUX.1 with the stages 'denoise' and 'decode', such as `FluxAutoBlocks()` or "
            f"`FluxKontextAutoBlocks()`, got {shown(blocks)}."
        )
    if isinstance(stages["decode"], ConditionsDecodeStep):
        raise ValueError("`blocks` take conditions already.")
    made = copy.deepcopy(blocks)
    loop = made.sub_blocks["denoise"].sub_blocks
    loop["denoise"] = ConditionsDenoiseStep(loop["denoise"])
    made.sub_blocks["decode"] = ConditionsDecodeStep(made.sub_blocks["decode"])
    return made
