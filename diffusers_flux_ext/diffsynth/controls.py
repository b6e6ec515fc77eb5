"""ControlNets and identities from `ControlNetInput`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers.utils import logging
from PIL import Image

from ..condition import FluxCondition
from ..inputs.numbers import read_number
from ..methods.control.condition import ControlNetImage
from ..methods.infinite_you.condition import InfiniteYouIdentity
from .inputs import ControlNetInput


logger = logging.get_logger(__name__)

# The largest difference of two progresses that count as one.
_CLOSE = 1e-9


def listed(value: Any) -> list[Any]:
    """Return a list, which one value becomes as well."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def window(start: float, end: float, steps: int) -> tuple[float, float] | None:
    """Translate a window of progress, which falls from 1 to 0, to fractions of the steps.

    Args:
        start (`float`): The highest progress at which the ControlNet acts.
        end (`float`): The lowest one.
        steps (`int`): Steps of the call.

    Returns:
        `tuple[float, float]`: start and end for [`ControlNetImage`], or `None` if no step is inside.
    """
    progress = [(steps - 1 - index) / max(steps - 1, 1) for index in range(steps)]
    inside = [index for index, at in enumerate(progress) if end - _CLOSE <= at <= start + _CLOSE]
    return (inside[0] / steps, (inside[-1] + 1) / steps) if inside else None


def residual_conditions(pipe: Any, call: Mapping[str, Any]) -> list[FluxCondition]:
    """Make a condition of each ControlNet's input; with an identity, all ControlNets see it in place of the prompt.

    Args:
        pipe (`TranslatedPipeline`): The pipeline.
        call (`Mapping[str, Any]`): The call's arguments by name, and `"face_encoder"`.

    Returns:
        `list[FluxCondition]`

    Raises:
        TypeError: if an input is something else.
        ValueError: if there is no such ControlNet, or its input does not fit.
    """
    conditions: list[FluxCondition] = []
    for index, given in enumerate(listed(call["controlnet_inputs"])):
        what = f"`controlnet_inputs[{index}]`"
        net = _net(pipe, given, what)
        steps = window(given.start, given.end, call["num_inference_steps"])
        if steps is None:
            continue
        shared: dict[str, Any] = {"scale": given.scale, "start": steps[0], "end": steps[1], "negative": "own"}
        if call["infinityou_id_image"] is None:
            mode = given.processor_id if getattr(net, "union", False) and net.config.num_mode else None
            conditions.append(ControlNetImage(net, given.image, mode=mode, inpaint_mask=given.inpaint_mask, **shared))
            continue
        conditions.append(
            InfiniteYouIdentity(
                net,
                pipe.image_projector,
                id_image=call["infinityou_id_image"],
                # A black image stands for none, as in the published script.
                keypoints=given.image if np.asarray(given.image).any() else None,
                face_encoder=call["face_encoder"](),
                guidance_scale=call["infinityou_guidance"],
                **shared,
            )
        )
    return conditions


def _net(pipe: Any, given: Any, what: str) -> Any:
    if not isinstance(given, ControlNetInput):
        raise TypeError(
            f"{what} is a {type(given).__name__}; expected a `ControlNetInput` of `diffusers_flux_ext.diffsynth`."
        )
    nets = list(pipe.controlnet.nets)
    if not isinstance(given.controlnet_id, int) or not 0 <= given.controlnet_id < len(nets):
        raise ValueError(
            f"`controlnet_id` of {what} is {given.controlnet_id!r}, but {len(nets)} ControlNets are loaded, numbered "
            f"from 0 in the order of `model_configs`."
        )
    if not isinstance(given.image, Image.Image):
        raise TypeError(f"`image` of {what} is a {type(given.image).__name__}; expected a PIL image.")
    if given.inpaint_image is not None:
        logger.warning(f"`inpaint_image` of {what} has no effect, as in DiffSynth-Studio: `image` is redrawn.")
    for name in ("start", "end"):
        read_number(f"`{name}` of {what}", getattr(given, name))
    return nets[given.controlnet_id]
