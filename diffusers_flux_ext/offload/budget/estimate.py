"""Estimates of activation memory: models run on the meta device, and tensors that live at once are counted."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from ..._compat.parallel import SHARING_MARKS
from ...checkpoints.packed_weights import GGUF, PlannedLinear, packed_layers, packing_of, stored_bytes
from ...lora.loading.clock import TimestepClock
from ..blocks import FP8, LEAVES, compute_dtype, streamable_blocks
from ..disk.guards import MARKS
from ..disk.stream import stream_of
from .live_bytes import peak_bytes


TILE_SIZES = (None, 1024, 768, 512, 384, 256, 128)
# For modules whose inputs are not known here: this share of their weights, but at least `ASSUMED_BYTES`.
ASSUMED_SHARE, ASSUMED_BYTES = 0.1, 2**26
PIXELS_PER_TOKEN = 16
# What calls of modules of a shape were found to take; planning asks for the same ones many times.
TRACES_KEPT = 256
_TRACED: dict[Any, int] = {}


@dataclass(frozen=True)
class Workload:
    """Size of a call.

    Attributes:
        height (`int`), width (`int`): The image in pixels.
        batch (`int`): Images at once: prompts times `num_images_per_prompt`.
        text_tokens (`int`): All text tokens of a sample, those that conditions add included.
        prompt_tokens (`int`): Tokens of the prompt alone, or of what replaces it.
        appended_tokens (`int`): Those of `text_tokens` that conditions append to the prompt, as ControlNets see it.
        encoded_tokens (`int`): Tokens of a text that T5 encodes.
        reference_tokens (`int`): Image tokens of a sample besides the image's and those of `canvases`.
        canvases (`int`): References of the image's own size.
        texts (`int`): Texts that T5 encodes at once.
        held_bytes (`int`): Bytes that conditions hold on the card for all steps.
        masked (`bool`): Whether conditions restrict who sees whom, which may take a mask of all pairs of tokens.
        devices (`int`): Devices that share the tokens of the transformer, each with its part.
        largest_tile (`int`, *optional*): Side of the autoencoder's tiles in pixels, where larger ones may not be used.
    """

    height: int = 1024
    width: int = 1024
    batch: int = 1
    text_tokens: int = 512
    prompt_tokens: int = 512
    appended_tokens: int = 0
    encoded_tokens: int = 512
    reference_tokens: int = 0
    canvases: int = 0
    texts: int = 1
    held_bytes: int = 0
    masked: bool = False
    devices: int = 1
    largest_tile: int | None = None

    @property
    def canvas_tokens(self) -> int:
        """Tokens of the image that is drawn."""
        return (self.height // PIXELS_PER_TOKEN) * (self.width // PIXELS_PER_TOKEN)

    @property
    def image_tokens(self) -> int:
        """Tokens of the image and of the references."""
        return self.canvas_tokens * (1 + self.canvases) + self.reference_tokens

    @property
    def shares(self) -> tuple[int, int]:
        """Text and image tokens of one device; the largest, where they cannot be shared evenly."""
        return -(-self.text_tokens // self.devices), -(-self.image_tokens // self.devices)


def activation_bytes(module: nn.Module, workload: Workload, tile: int | None = None) -> tuple[int, bool]:
    """Return the peak of a module's activations in a call.

    Args:
        module (`torch.nn.Module`): A model without offloading hooks. It is not run: a copy on the meta device is.
        workload (`Workload`): The call.
        tile (`int`, *optional*): Side of an autoencoder's tiles in pixels; untiled by default.

    Returns:
        `tuple[int, bool]`: Bytes, and whether they are assumed because it is not known how the module is called.
    """
    call = _call_for(module, workload, tile)
    if call is None:
        weights = sum(map(stored_bytes, module.parameters()))
        return max(int(weights * ASSUMED_SHARE), ASSUMED_BYTES), True
    plane = _plane_bytes(workload) if tile is not None else 0
    key = (workload, tile, _shape_of(module))
    if key not in _TRACED:
        _TRACED[key] = peak_bytes(call(meta_copy(module)))
        if len(_TRACED) > TRACES_KEPT:
            del _TRACED[next(iter(_TRACED))]
    return _TRACED[key] + plane + _exchanged_bytes(module, workload), False


def _exchanged_bytes(module: Any, workload: Workload) -> int:
    """Count what a transformer holds besides while devices exchange heads for tokens.

    Queries, keys and values of one layer are joined, sent, received and sorted; all four are there at once.
    """
    if workload.devices == 1 or not _is_shared(module):
        return 0
    text, image = workload.shares
    return int(12 * workload.batch * (text + image) * module.inner_dim * compute_dtype(module).itemsize)


def _is_shared(module: Any) -> bool:
    """Whether devices share the tokens of a module: those of a transformer, but not of a ControlNet."""
    return hasattr(module, "transformer_blocks") and not hasattr(module, "controlnet_x_embedder")


def residual_bytes(module: Any, workload: Workload) -> int:
    """Count the bytes of a ControlNet's residuals while the transformer runs; 0 for other modules."""
    if not hasattr(module, "controlnet_x_embedder"):
        return 0
    number = len(module.controlnet_blocks) + len(module.controlnet_single_blocks)
    width = module.inner_dim
    return int(number * workload.batch * workload.canvas_tokens * width * compute_dtype(module).itemsize)


def _shape_of(module: nn.Module) -> Any:
    own: list[Any] = [(name, tuple(each.shape)) for name, each in module.named_parameters()]
    own += packed_layers(module).items()
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())
    return type(module), compute_dtype(module), hash(tuple(own)), hooks, repr(getattr(module, "config", None))


def meta_copy(module: nn.Module) -> Any:
    """Copy a module to the meta device, with the first block of each list only: blocks run one after the other.

    Args:
        module (`torch.nn.Module`): The module; it stays as it is, and hooks are not copied.

    Returns:
        `torch.nn.Module`
    """
    dtype = compute_dtype(module)
    memo: dict[int, Any] = _plain_layers(module, dtype)
    plain = {id(each) for layer in module.modules() if id(layer) in memo for each in layer.parameters(recurse=False)}
    for each in chain(module.parameters(), module.buffers()):
        if id(each) in plain:
            continue
        meta = torch.empty_like(each, device="meta", dtype=dtype if each.dtype in FP8 else None)
        memo[id(each)] = nn.Parameter(meta, False) if isinstance(each, nn.Parameter) else meta
    for part in module.modules():
        for name in ("_diffusers_hook", "_hf_hook", "forward"):
            if name in part.__dict__:
                memo[id(part.__dict__[name])] = None
        for hooks in _hook_dicts(part):
            if not any(_is_clock(hook) for hook in hooks.values()):
                memo[id(hooks)] = OrderedDict()
    for holder, name in _streaming_marks(module):
        memo[id(holder[name])] = None
    for name in SHARING_MARKS:
        # They hold process groups, and processors refer to them, too. The copy runs alone.
        memo[id(module.__dict__.get(name))] = None
    stream = stream_of(module)
    for weight in (weight for block in (stream.blocks if stream else ()) for weight in block.weights):
        away = weight.owner.__dict__[weight.attribute]
        memo[id(away)] = torch.empty(weight.shape, device="meta", dtype=weight.dtype)
    for path in {path.rpartition(".")[0] for path in streamable_blocks(module)}:
        blocks = module.get_submodule(path)
        if isinstance(blocks, nn.ModuleList) and not isinstance(blocks[0], LEAVES):
            memo[id(blocks)] = nn.ModuleList([copy.deepcopy(blocks[0], memo)])
    twin = copy.deepcopy(module, memo)
    for holder, name in _streaming_marks(twin):
        del holder[name]
    for part in twin.modules():
        for name in ("_diffusers_hook", "_hf_hook", "forward"):
            part.__dict__.pop(name, None)
        for hooks in _hook_dicts(part):
            for key in [key for key, hook in hooks.items() if not _is_clock(hook)]:
                del hooks[key]
    return twin.requires_grad_(False)


def _plain_layers(module: nn.Module, dtype: torch.dtype) -> dict[int, Any]:
    """Ordinary layers on the meta device in the place of those whose libraries know no such device."""
    made: dict[int, Any] = {}
    for layer in module.modules():
        is_gguf = packing_of(layer) == GGUF and not isinstance(layer, PlannedLinear)
        if isinstance(layer, nn.Linear) and packing_of(layer) is not None and not is_gguf:
            sizes = (layer.in_features, layer.out_features, layer.bias is not None)
            made[id(layer)] = nn.Linear(*sizes, device="meta", dtype=dtype)
    return made


def _streaming_marks(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    return [(part.__dict__, name) for part in module.modules() for name in MARKS if name in part.__dict__]


def _hook_dicts(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._state_dict_hooks,
        module._load_state_dict_pre_hooks,
    )


def _is_clock(hook: Any) -> bool:
    """Whether a hook gives LoRAs the timestep, without which they cannot run; other hooks see whole models only."""
    return isinstance(getattr(hook, "__self__", None), TimestepClock)


def _call_for(
    module: nn.Module, workload: Workload, tile: int | None
) -> Callable[[nn.Module], Callable[[], Any]] | None:
    config: Any = getattr(module, "config", None)
    if isinstance(module, AutoencoderKL):
        return lambda twin: _decode(twin, workload, tile)
    if hasattr(module, "transformer_blocks") and hasattr(config, "joint_attention_dim"):
        return lambda twin: _denoise(twin, workload)
    kind = getattr(config, "model_type", None)
    if kind == "t5":
        return lambda twin: lambda: twin(_ids(workload.texts * workload.batch, workload.encoded_tokens))
    if kind == "clip_text_model":
        length = config.max_position_embeddings
        return lambda twin: lambda: twin(_ids(workload.batch, length))
    if kind in ("clip_vision_model", "siglip_vision_model"):
        side = config.image_size
        return lambda twin: lambda: twin(_empty(twin, workload.batch, 3, side, side))
    if hasattr(config, "image_embed_dim"):
        return lambda twin: lambda: twin(_empty(twin, workload.batch, 1, config.image_embed_dim))
    if hasattr(config, "timestep_scale"):
        shape = (workload.batch, workload.prompt_tokens, config.in_channels)
        return lambda twin: lambda: twin(_empty(twin, *shape), timestep=_empty(twin, workload.batch))
    return None


def _ids(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.long, device="meta")


def _empty(module: nn.Module, *shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=compute_dtype(module), device="meta")


def _denoise(module: Any, workload: Workload) -> Callable[[], Any]:
    """Return one call of a transformer or a ControlNet."""
    config, batch = module.config, workload.batch
    is_net = hasattr(module, "controlnet_x_embedder")
    text, image = workload.shares
    if is_net:
        text, image = workload.prompt_tokens + workload.appended_tokens, workload.canvas_tokens

    def call() -> Any:
        inputs: dict[str, Any] = {
            "hidden_states": _empty(module, batch, image, module.x_embedder.in_features),
            "encoder_hidden_states": _empty(module, batch, text, config.joint_attention_dim),
            "pooled_projections": _empty(module, batch, config.pooled_projection_dim),
            "timestep": _empty(module, batch),
            "img_ids": _empty(module, image, 3),
            "txt_ids": _empty(module, text, 3),
            "guidance": _empty(module, batch) if config.guidance_embeds else None,
        }
        if is_net:
            inputs |= _control(module, workload)
        elif workload.masked:
            whole = workload.text_tokens + workload.image_tokens
            pairs = torch.zeros(1, 1, whole, whole, dtype=torch.bool, device="meta")
            inputs["joint_attention_kwargs"] = {"attention_mask": pairs[..., : text + image, : text + image]}
        return module(**inputs)

    return call


def _control(module: Any, workload: Workload) -> dict[str, torch.Tensor]:
    pixels = getattr(module, "input_hint_block", None) is not None
    channels = module.controlnet_x_embedder.in_features
    shape = (3, workload.height, workload.width) if pixels else (workload.canvas_tokens, channels)
    inputs = {"controlnet_cond": _empty(module, workload.batch, *shape)}
    if getattr(module, "union", False):
        inputs["controlnet_mode"] = _ids(workload.batch, 1)
    return inputs


def _decode(vae: Any, workload: Workload, tile: int | None) -> Callable[[], Any]:
    cell = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = _decoded_size(workload)
    batch, latents = workload.batch, vae.config.latent_channels
    if tile is not None:
        height, width, batch = min(tile, height), min(tile, width), 1
    vae.disable_tiling()
    return lambda: vae.decode(_empty(vae, batch, latents, height // cell, width // cell)).sample


def _decoded_size(workload: Workload) -> tuple[int, int]:
    if not workload.reference_tokens:
        return workload.height, workload.width
    # References are encoded at their own size, about a megapixel each.
    return max(workload.height, 1024), max(workload.width, 1024)


def _plane_bytes(workload: Workload) -> int:
    """Count the bytes of the image that tiles are blended into: the sums in float32 and their weights."""
    height, width = _decoded_size(workload)
    return workload.batch * height * width * 4 * 4


def set_tiling(vae: Any, tile: int | None) -> None:
    """Enable an autoencoder's tiling and slicing, or disable both.

    Args:
        vae (`AutoencoderKL` or [`AutoencoderKLFlux`]): The autoencoder.
        tile (`int`, *optional*): Side of a tile in pixels; `None` decodes all images at once, untiled.
    """
    if tile is None:
        vae.disable_tiling()
        vae.disable_slicing()
        return
    vae.enable_slicing()
    if hasattr(vae, "cell_size"):
        vae.enable_tiling(tile_size=tile)
        return
    vae.enable_tiling()
    # diffusers' own tiles have the size the model was trained with: 1024 pixels for FLUX.1, which changes nothing.
    vae.tile_sample_min_size = tile
    vae.tile_latent_min_size = tile // 2 ** (len(vae.config.block_out_channels) - 1)
