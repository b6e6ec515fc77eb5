"""Checks of a call's arguments one by one, before anything is computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from .._compat import is_stored_in_fewer_bits
from ..checkpoints.packed_weights import check_not_nunchaku, check_not_packed
from ..inputs.checks import check_callable, check_choice, check_flag, check_generators, read_texts, shown
from ..inputs.numbers import check_embeds, check_finite, read_count, read_number


LARGEST_SIDE = 65_536
MOST_STEPS = 1_000_000
MOST_IMAGES = 4096
OUTPUT_TYPES = ("pil", "np", "pt", "latent", None)


def check_storage(transformer: torch.nn.Module) -> None:
    """Raise a `ValueError` if conditions cannot run on the weights of a transformer.

    Those are nunchaku's, and quantised ones that diffusers stores in 8 bits, which destroys them without an error.

    Args:
        transformer (`torch.nn.Module`): The transformer.
    """
    check_not_nunchaku((), type(transformer))
    if is_stored_in_fewer_bits(transformer):
        check_not_packed(
            transformer, "run with layerwise casting", "Load it again without `enable_layerwise_casting`."
        )


def _check_prompt(what: str, value: Any) -> None:
    # diffusers takes no tuples here.
    if isinstance(value, tuple):
        raise TypeError(f"{what} must be a text or a list of texts, got {shown(value)}.")
    read_texts(what, value)


def _check_tokens(what: str, value: Any) -> None:
    check_embeds(what, value, "(samples, tokens, channels)", None, None, None)


def _check_pooled(what: str, value: Any) -> None:
    check_embeds(what, value, "(prompts, channels)", None, None)


def _check_sigmas(what: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        check_finite(what, value)
    listed = value.tolist() if isinstance(value, (np.ndarray, torch.Tensor)) else value
    if not isinstance(listed, (list, tuple)):
        raise TypeError(f"{what} must be a list of noise levels from 0 to 1, got {shown(value)}.")
    if not 0 < len(listed) <= MOST_STEPS:
        raise ValueError(f"{what} must have one noise level per step, got {shown(value)}.")
    for sigma in listed:
        read_number(what, sigma, 0, 1)


def _check_kwargs(what: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{what} must be a dictionary of arguments by name, got {shown(value)}.")
    if value.get("scale") is not None:
        read_number(f"{what}, the entry 'scale',", value["scale"])


def _check_names(what: str, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or not all(isinstance(n, str) for n in value):
        raise TypeError(f"{what} must be a list of names such as ['latents'], got {shown(value)}.")


def _check_side(what: str, value: Any) -> None:
    whole = isinstance(value, float) and value.is_integer() and value <= LARGEST_SIDE
    read_count(what, int(value) if whole else value, 1, LARGEST_SIDE)


def _check_callback(what: str, value: Any) -> None:
    check_callable(what, value)
    if isinstance(value, torch.nn.Module):
        raise TypeError(f"{what} must be a function, got {shown(value)}.")
    try:
        signature = inspect.signature(value)
    except ValueError:  # Some C callables have no signature.
        return
    try:
        signature.bind(*("pipeline", "step_index", "timestep", "callback_kwargs"))
    except TypeError as error:
        raise TypeError(
            f"{what} must take the arguments (pipeline, step_index, timestep, callback_kwargs), but its signature is "
            f"{signature}: {error}."
        ) from None


CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    **dict.fromkeys(("prompt", "prompt_2", "negative_prompt", "negative_prompt_2"), _check_prompt),
    **dict.fromkeys(("height", "width"), _check_side),
    **dict.fromkeys(("true_cfg_scale", "guidance_scale"), read_number),
    "strength": lambda what, value: read_number(what, value, 0, 1),
    "num_inference_steps": lambda what, value: read_count(what, value, 1, MOST_STEPS),
    "num_images_per_prompt": lambda what, value: read_count(what, value, 1, MOST_IMAGES),
    "max_sequence_length": lambda what, value: read_count(what, value, 1, 512),
    "sigmas": _check_sigmas,
    "generator": check_generators,
    **dict.fromkeys(("latents", "prompt_embeds", "negative_prompt_embeds"), _check_tokens),
    **dict.fromkeys(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), _check_pooled),
    "output_type": lambda what, value: check_choice(what, value, OUTPUT_TYPES),
    **dict.fromkeys(("return_dict", "mask_padding"), check_flag),
    "joint_attention_kwargs": _check_kwargs,
    "callback_on_step_end": _check_callback,
    "callback_on_step_end_tensor_inputs": _check_names,
}
"""By argument of the common call, what raises a `TypeError` or a `ValueError` for a wrong value."""

# `None` means nothing to these arguments; to the others it means their default.
_NEVER_NONE = (
    "true_cfg_scale",
    "num_inference_steps",
    "guidance_scale",
    "num_images_per_prompt",
    "max_sequence_length",
    "strength",
)


def check_arguments(given: Mapping[str, Any]) -> None:
    """Check arguments of [`FluxConditionedPipeline.__call__`] one by one, as far as the table covers them.

    Args:
        given (`Mapping[str, Any]`): Arguments by name; `None` is not checked.

    Raises:
        TypeError: if a value has a wrong type.
        ValueError: if a value is out of range, NaN or infinite.
    """
    for name, value in given.items():
        if name in CHECKS and (value is not None or name in _NEVER_NONE):
            CHECKS[name](f"`{name}`", value)


def read_callback(
    returned: Any, latents: torch.Tensor, prompt_embeds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read what `callback_on_step_end` returned.

    Args:
        returned (`dict[str, torch.Tensor]`, *optional*): Tensors to continue with; `None` changes nothing.
        latents (`torch.Tensor` of shape `(batch_size, num_tokens, 64)`): The latents so far.
        prompt_embeds (`torch.Tensor` of shape `(batch_size, length, 4096)`): The prompt so far.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: latents and prompt.

    Raises:
        TypeError: if it is not a dictionary, or holds anything but tensors.
        ValueError: if latents have another shape.
    """
    if returned is None:
        return latents, prompt_embeds
    if not isinstance(returned, Mapping):
        raise TypeError(
            f"`callback_on_step_end` must return a dictionary such as {{'latents': tensor}}, or None to change "
            f"nothing, got {shown(returned)}."
        )
    changed = {"latents": latents, "prompt_embeds": prompt_embeds}
    changed |= {name: value for name, value in returned.items() if name in changed}
    for name, value in changed.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"`callback_on_step_end` returned {shown(value)} for {name!r}; expected a tensor.")
    if changed["latents"].shape != latents.shape:
        raise ValueError(
            f"`callback_on_step_end` returned 'latents' of the shape {tuple(changed['latents'].shape)}; expected "
            f"{tuple(latents.shape)}."
        )
    return changed["latents"], changed["prompt_embeds"]
