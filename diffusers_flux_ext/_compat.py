"""Private and moving parts of diffusers, imported in one place."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import UserCpuOffloadHook
from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheDenoiserHook
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager
from diffusers.hooks.mag_cache import MagCacheHeadHook
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers.loaders.lora_base import _fetch_state_dict, _func_optionally_disable_offloading
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.transformers.transformer_flux import _get_qkv_projections as get_qkv_projections
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.pipelines.flux.pipeline_flux_img2img import retrieve_latents
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from diffusers.utils.peft_utils import get_peft_kwargs
from diffusers.utils.torch_utils import get_module_execution_device as execution_device


__all__ = [
    "PREFERRED_KONTEXT_RESOLUTIONS",
    "BaseState",
    "HookRegistry",
    "ModelHook",
    "StateManager",
    "active_caches",
    "attention_accepts_mask",
    "borrow_weights",
    "calculate_shift",
    "component_names",
    "execution_device",
    "expand_linears",
    "fetch_lora_state_dict",
    "get_peft_kwargs",
    "get_qkv_projections",
    "has_offload_hook",
    "offload_all_but",
    "offloading_suspended",
    "reset_caches",
    "restore_linears",
    "retrieve_latents",
    "retrieve_timesteps",
]

# The attention backends of diffusers that take a dense mask.
MASK_BACKENDS = frozenset(
    {"native", "flex", "xformers", "_native_cudnn", "_native_efficient", "_native_math", "_native_npu", "_native_xla"}
)

# The hooks that show a cache which was applied by its function rather than by `enable_cache`.
CACHE_HOOKS: dict[type, str] = {
    FasterCacheBlockHook: "FasterCacheConfig",
    FasterCacheDenoiserHook: "FasterCacheConfig",
    FBCHeadBlockHook: "FirstBlockCacheConfig",
    MagCacheHeadHook: "MagCacheConfig",
    PyramidAttentionBroadcastHook: "PyramidAttentionBroadcastConfig",
    TaylorSeerCacheHook: "TaylorSeerCacheConfig",
}


def attention_accepts_mask(backend: str | None) -> bool:
    """Whether an attention backend takes a dense mask; `None` stands for diffusers' active backend."""
    name = _AttentionBackendRegistry.get_active_backend()[0] if backend is None else backend
    return str(getattr(name, "value", name)) in MASK_BACKENDS


def component_names(pipeline_class: type) -> tuple[set[str], set[str]]:
    """Names of the components and of the plain arguments of a pipeline class' constructor."""
    components, optional = pipeline_class._get_signature_keys(pipeline_class)  # type: ignore[attr-defined]
    return set(components), set(optional)


def has_offload_hook(module: torch.nn.Module) -> bool:
    """Whether accelerate or group offloading moves the module's weights by itself."""
    return any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in module.modules())


def offload_all_but(pipe: Any, names: Collection[str]) -> None:
    """Sends every component under model CPU offload back to the CPU, except for those of the given names.

    accelerate's chain itself sends only the previous model of its order back. Without model offload nothing happens.
    """
    kept = [getattr(pipe, name, None) for name in names]
    for hook in getattr(pipe, "_all_hooks", ()):
        if isinstance(hook, UserCpuOffloadHook) and not any(hook.model is module for module in kept):
            hook.offload()


def active_caches(transformer: torch.nn.Module) -> dict[str, list[ModelHook]]:
    """Names of the caches that a transformer runs with, however they were applied, and some of their hooks."""
    blocks: Any = getattr(transformer, "transformer_blocks", None)
    modules = [transformer, *(blocks[0].modules() if blocks else ())]
    config = getattr(transformer, "_cache_config", None)
    found: dict[str, list[ModelHook]] = {} if config is None else {type(config).__name__: []}
    for module in modules:
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            if type(hook) in CACHE_HOOKS:
                found.setdefault(CACHE_HOOKS[type(hook)], []).append(hook)
    return found


def reset_caches(transformer: torch.nn.Module) -> None:
    """Empties the caches of a transformer, so that nothing of a call that broke off reaches the next one."""
    if hasattr(transformer, "_reset_stateful_cache"):
        transformer._reset_stateful_cache()  # type: ignore[operator]


def borrow_weights(block: torch.nn.Module, layer: torch.nn.Module, **inputs: Any) -> dict[str, torch.Tensor] | None:
    """Weights of a layer as they are while its block runs, or `None` for a layer that can be called at any time.

    Group offloading and its like bring the weights of a whole block when the block is called, and take them away
    afterwards. Here the block is called without its own work, so that all of its hooks run.

    Args:
        block (`torch.nn.Module`): The block.
        layer (`torch.nn.Module`): A layer of it.
        inputs: Arguments of the block.
    """
    if has_offload_hook(layer) or not has_offload_hook(block):
        return None
    weights: dict[str, torch.Tensor] = {}

    def borrow(*args: Any, **kwargs: Any) -> tuple[()]:
        weights.update({name: weight.detach() for name, weight in layer.named_parameters()})
        return ()

    chain = getattr(getattr(block, "_diffusers_hook", None), "_fn_refs", None)
    # Without a chain of diffusers' hooks it is accelerate that has put its own function before the block's.
    holder, name = (chain[0], "forward") if chain else (block, "_old_forward")
    if not hasattr(holder, name):
        return None
    work = getattr(holder, name)
    setattr(holder, name, borrow)
    try:
        block._call_impl(**inputs)
    finally:
        setattr(holder, name, work)
    return weights


def fetch_lora_state_dict(
    source: str | dict[str, torch.Tensor], **kwargs: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    """State dict and metadata of a LoRA repository, folder, file or dict; takes the arguments of `lora_state_dict`."""
    use_safetensors = kwargs.get("use_safetensors")
    return _fetch_state_dict(
        source,
        weight_name=kwargs.get("weight_name"),
        use_safetensors=True if use_safetensors is None else use_safetensors,
        local_files_only=kwargs.get("local_files_only"),
        cache_dir=kwargs.get("cache_dir"),
        force_download=kwargs.get("force_download", False),
        proxies=kwargs.get("proxies"),
        token=kwargs.get("token"),
        revision=kwargs.get("revision"),
        subfolder=kwargs.get("subfolder"),
        user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
        allow_pickle=use_safetensors is None,
    )


@contextmanager
def offloading_suspended(pipe: Any) -> Iterator[None]:
    """Takes accelerate's hooks off a pipeline's modules, and has all offloading cover what was added meanwhile."""
    model, sequential, group = _func_optionally_disable_offloading(pipe)
    try:
        yield
    finally:
        if model:
            pipe.enable_model_cpu_offload()
        elif sequential:
            pipe.enable_sequential_cpu_offload()
        elif group:
            for component in pipe.components.values():
                if isinstance(component, torch.nn.Module):
                    _maybe_remove_and_reapply_group_offloading(component)


def expand_linears(transformer: torch.nn.Module, lora_state_dict: dict[str, torch.Tensor]) -> bool:
    """Widens with zeros the Linears that a control LoRA needs wider; says whether there were any."""
    return FluxLoraLoaderMixin._maybe_expand_transformer_param_shape_or_error_(transformer, lora_state_dict)


def restore_linears(pipe: Any) -> None:
    """Gives Linears that [`expand_linears`] widened their old weights, after all LoRAs are gone."""
    if getattr(getattr(pipe, "transformer", None), "_overwritten_params", None):
        FluxLoraLoaderMixin.unload_lora_weights(pipe, reset_to_overwritten_params=True)
        pipe.transformer._overwritten_params = None
