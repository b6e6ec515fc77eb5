"""One call of the translated pipeline: size, noise, prompts, schedule, tiling, cache and progress."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.utils import logging
from PIL import Image

from ..caches.tea_cache import TeaCacheConfig, apply_tea_cache, remove_tea_cache
from ..canvas import pack_latents
from ..inputs.checks import check_flag, shown
from ..inputs.numbers import read_count, read_number
from ..methods.insert_anything.diptych import Diptych, paste_panel, read_diptychs
from ..pipeline.call_checks import LARGEST_SIDE, MOST_STEPS
from ..schedulers.scheduling_flux_flow_match import FluxFlowMatchScheduler
from .call import conditions_of


logger = logging.get_logger(__name__)

TOKEN = 16
LATENT_CHANNELS = 16
LONGEST_TEXT = 512
DIPTYCH_HEIGHT = 768
_INSERT = ("source_image", "source_mask", "ref_image", "ref_mask")
# Methods that bring a prompt of their own, so that the text encoders may be missing.
_OWN_PROMPT = ("step1x_reference_image", "flux_redux_image")


def run_call(pipe: Any, given: Mapping[str, Any]) -> Image.Image:
    """Draw one image.

    Args:
        pipe (`TranslatedPipeline`): The pipeline.
        given (`Mapping[str, Any]`): Arguments of the reference's call by name, and `"processor"` and `"face_encoder"`.

    Returns:
        `PIL.Image.Image`

    Raises:
        TypeError: if an argument has a wrong type.
        ValueError: if an argument is out of range, or a model that the call needs is not loaded.
    """
    _check_models(pipe)
    _check_values(given)
    call = {**given, "height": round_up("height", given["height"]), "width": round_up("width", given["width"])}
    diptych = _diptych(call)
    if diptych is not None:
        call |= _of_diptych(diptych)
    conditions = conditions_of(pipe, call)
    with ExitStack() as running:
        native = _scheduled(pipe, call["sigma_shift"])
        running.enter_context(_cached(native, call["tea_cache_l1_thresh"]))
        running.enter_context(_tiled(native, call))
        drawn = native(
            **_prompts(native, call),
            true_cfg_scale=call["cfg_scale"],
            guidance_scale=call["embedded_guidance"],
            height=call["height"],
            width=call["width"],
            num_inference_steps=call["num_inference_steps"],
            sigmas=native.scheduler.base_sigmas(call["num_inference_steps"], call["denoising_strength"]),
            image=call["input_image"],
            strength=1.0,
            latents=_noise(native, call),
            conditions=conditions,
            callback_on_step_end=_progress(native, call),
        ).images[0]
    return drawn if diptych is None else _pasted(diptych, drawn)


def round_up(name: str, size: int) -> int:
    """Round a side of the image up to whole tokens, and say so.

    Args:
        name (`str`): `"height"` or `"width"`.
        size (`int`): Pixels.

    Returns:
        `int`: pixels.
    """
    size = read_count(f"`{name}`", size, 1, LARGEST_SIDE)
    rounded = -(-size // TOKEN) * TOKEN
    if rounded != size:
        logger.warning(f"`{name}` is {size}, which is rounded up to {rounded}, a multiple of {TOKEN}.")
    return rounded


def _check_models(pipe: Any) -> None:
    needed = {"transformer": "flux1-dev.safetensors", "vae": "ae.safetensors"}
    missing = [f"`{file}` (the {name})" for name, file in needed.items() if getattr(pipe, name) is None]
    if missing:
        raise ValueError(f"A call needs {' and '.join(missing)} or the like among `model_configs`.")


def _check_values(given: Mapping[str, Any]) -> None:
    for name in ("prompt", "negative_prompt"):
        if not isinstance(given[name], str):
            raise TypeError(f"`{name}` must be one text, got {shown(given[name])}. A call draws one image.")
    for name in ("cfg_scale", "embedded_guidance"):
        read_number(f"`{name}`", given[name])
    read_count("`num_inference_steps`", given["num_inference_steps"], 1, MOST_STEPS)
    if not 0 < read_number("`denoising_strength`", given["denoising_strength"]) <= 1:
        raise ValueError(f"`denoising_strength` is {given['denoising_strength']}; expected a number in (0, 1].")
    length = given["t5_sequence_length"]
    if read_count("`t5_sequence_length`", length, 1, 10**6) > LONGEST_TEXT:
        raise ValueError(
            f"`t5_sequence_length` is {length}; here it is at most {LONGEST_TEXT}, the length that FLUX.1 was trained "
            f"with. DiffSynth-Studio takes more."
        )
    if given["seed"] is not None:
        read_count("`seed`", given["seed"], -(2**63), 2**64 - 1)
    check_flag("`tiled`", given["tiled"])
    if not callable(given["progress_bar_cmd"]):
        raise TypeError(
            f"`progress_bar_cmd` must wrap the timesteps, as tqdm, got {shown(given['progress_bar_cmd'])}."
        )


def _scheduled(pipe: Any, shift: float | None) -> Any:
    """Return the pipeline, or with a shift of its own a view of it that has another scheduler."""
    if shift is None:
        return pipe
    view = copy.copy(pipe)
    view.scheduler = FluxFlowMatchScheduler(shift=read_number("`sigma_shift`", shift))
    return view


def _noise(pipe: Any, call: Mapping[str, Any]) -> torch.Tensor:
    """Draw the noise as the reference: in float32, on `rand_device`, from the global generator without a seed."""
    device, shape = call["rand_device"], (1, LATENT_CHANNELS, call["height"] // 8, call["width"] // 8)
    try:
        generator = None if call["seed"] is None else torch.Generator(device).manual_seed(call["seed"])
        noise = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    except RuntimeError as error:
        raise ValueError(f"`rand_device` is {device!r}, where no noise can be drawn: {error}") from error
    return pack_latents(noise).to(dtype=pipe.transformer.dtype)


def _prompts(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prompts as texts, or as zeros where a method replaces them and the text encoders are missing."""
    missing = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name) is None]
    length = call["t5_sequence_length"]
    if not missing:
        for name, what in (("tokenizer", "tokenizer_1_config"), ("tokenizer_2", "tokenizer_2_config")):
            if getattr(pipe, name) is None:
                raise ValueError(f"`{what}` was None, so a prompt cannot be read. Give the folder of the tokenizer.")
        texts = {"prompt": call["prompt"], "max_sequence_length": length}
        return texts | ({"negative_prompt": call["negative_prompt"]} if call["cfg_scale"] != 1 else {})
    if all(call[name] is None for name in _OWN_PROMPT):
        raise ValueError(
            f"{missing} are not among `model_configs`: a call needs `text_encoder/model.safetensors` and "
            f"`text_encoder_2/*.safetensors`, unless Step1X-Edit, Redux or Insert-Anything replaces the prompt."
        )
    config, dtype = pipe.transformer.config, pipe.transformer.dtype
    device = pipe._execution_device
    zeros = {
        "prompt_embeds": torch.zeros(1, length, config.joint_attention_dim, dtype=dtype, device=device),
        "pooled_prompt_embeds": torch.zeros(1, config.pooled_projection_dim, dtype=dtype, device=device),
    }
    return zeros | ({f"negative_{name}": value for name, value in zeros.items()} if call["cfg_scale"] != 1 else {})


def _progress(pipe: Any, call: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """Return a callback that advances what `progress_bar_cmd` makes of the timesteps, and ends the loop with it."""
    scheduler = copy.copy(pipe.scheduler)
    scheduler.set_timesteps(
        call["num_inference_steps"], denoising_strength=call["denoising_strength"], shift=call["sigma_shift"]
    )
    bar: Iterator[Any] = iter(call["progress_bar_cmd"](scheduler.timesteps))
    ended = object()
    next(bar, ended)

    def advance(native: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        native._interrupt = native._interrupt or next(bar, ended) is ended
        return {}

    return advance


@contextmanager
def _cached(pipe: Any, threshold: float | None) -> Iterator[None]:
    if threshold is None:
        yield
        return
    apply_tea_cache(pipe.transformer, TeaCacheConfig(read_number("`tea_cache_l1_thresh`", threshold)))
    try:
        yield
    finally:
        remove_tea_cache(pipe.transformer)


@contextmanager
def _tiled(pipe: Any, call: Mapping[str, Any]) -> Iterator[None]:
    if not call["tiled"]:
        yield
        return
    vae, (size, stride) = pipe.vae, (call["tile_size"], call["tile_stride"])
    former = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_sample_stride, vae.tile_ramp_image_borders)
    cell = vae.cell_size
    largest = max(call["height"], call["width"]) // cell
    if largest > size:
        logger.warning(
            f"`tiled` applies to the VAE. The transformer sees the whole canvas of {largest} latent cells and not "
            f"tiles of {size}, so that references, regions and adapters are kept; it takes more memory, and the image "
            f"differs from DiffSynth-Studio's."
        )
    vae.enable_tiling(cell * size, cell * stride, ramp_image_borders=True)
    try:
        yield
    finally:
        vae.enable_tiling(*former[1:])
        vae.use_tiling = former[0]


def _diptych(call: Mapping[str, Any]) -> Diptych | None:
    given = {name: call[f"insert_anything_{name}"] for name in _INSERT}
    if all(value is None for value in given.values()):
        return None
    missing = [f"insert_anything_{name}" for name in _INSERT if given[name] is None]
    if missing:
        raise ValueError(f"`{'`, `'.join(missing)}` are missing: Insert-Anything takes two images and their masks.")
    clash = [name for name in ("flux_fill_image", "flux_fill_mask", "flux_redux_image") if call[name] is not None]
    if clash:
        raise ValueError(f"Insert-Anything makes `{'`, `'.join(clash)}` itself. Leave them out.")
    source, source_mask, reference, reference_mask = given.values()
    return read_diptychs(source, source_mask, reference, reference_mask, DIPTYCH_HEIGHT)[0]


def _of_diptych(diptych: Diptych) -> dict[str, Any]:
    return {
        "flux_fill_image": diptych.image,
        "flux_fill_mask": diptych.mask,
        "flux_redux_image": diptych.reference,
        "height": diptych.image.height,
        "width": diptych.image.width,
    }


def _pasted(diptych: Diptych, drawn: Image.Image) -> Image.Image:
    return paste_panel(diptych, drawn.crop((drawn.width // 2, 0, drawn.width, drawn.height)), "crop")
