"""Private and moving parts of diffusers, imported in one place."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch._dynamo
from accelerate.hooks import UserCpuOffloadHook
from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheDenoiserHook
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.group_offloading import (
    _GROUP_OFFLOADING as GROUP_OFFLOADING,
)
from diffusers.hooks.group_offloading import (
    _LAYER_EXECUTION_TRACKER,
    _LAZY_PREFETCH_GROUP_OFFLOADING,
    GroupOffloadingConfig,
    GroupOffloadingHook,
    GroupOffloadingType,
    ModuleGroup,
    _maybe_remove_and_reapply_group_offloading,
)
from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager
from diffusers.hooks.layerwise_casting import _is_layerwise_casting_active as is_stored_in_fewer_bits
from diffusers.hooks.mag_cache import MagCacheHeadHook
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers.loaders.lora_base import _fetch_state_dict, _func_optionally_disable_offloading
from diffusers.loaders.single_file_model import _get_single_file_loadable_mapping_class
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.models.transformers.transformer_flux import _get_qkv_projections as get_qkv_projections
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.pipelines.flux.pipeline_flux_img2img import retrieve_latents
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from diffusers.utils.peft_utils import get_peft_kwargs
from diffusers.utils.torch_utils import get_module_execution_device as execution_device


__all__ = [
    "GROUP_OFFLOADING",
    "PREFERRED_KONTEXT_RESOLUTIONS",
    "BaseState",
    "GroupOffloadingConfig",
    "GroupOffloadingHook",
    "GroupOffloadingType",
    "HookRegistry",
    "ModelHook",
    "ModuleGroup",
    "StateManager",
    "active_caches",
    "attention_accepts_mask",
    "borrow_weights",
    "calculate_shift",
    "compiler_backend",
    "component_names",
    "dequantize_gguf_tensor",
    "execution_device",
    "expand_linears",
    "fetch_lora_state_dict",
    "get_peft_kwargs",
    "get_qkv_projections",
    "has_offload_hook",
    "hooks_without_branches",
    "is_compiled",
    "is_stored_in_fewer_bits",
    "load_gguf_checkpoint",
    "modular_text_embeds",
    "offload_all_but",
    "offloading_suspended",
    "reads_single_files",
    "recompilations_allowed",
    "recompile_options",
    "register_innermost",
    "remove_group_offloading",
    "remove_hook",
    "replace_with_gguf_linears",
    "reset_caches",
    "restore_linears",
    "retrieve_latents",
    "retrieve_timesteps",
    "state_hooks",
    "vram_budget_of",
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
    """Return the names of the components and of the plain arguments in a pipeline class' constructor."""
    components, optional = pipeline_class._get_signature_keys(pipeline_class)  # type: ignore[attr-defined]
    return set(components), set(optional)


def reads_single_files(model_class: type) -> bool:
    """Whether diffusers' `from_single_file` knows a model class or one that it extends."""
    return _get_single_file_loadable_mapping_class(model_class) is not None


def dequantize_gguf_tensor(weight: torch.Tensor) -> torch.Tensor:
    """Return the tensor that a packed one of a GGUF file represents, in the data type of its format."""
    # The package `gguf` is needed to import this.
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor as dequantize

    return dequantize(weight)


def replace_with_gguf_linears(
    model: torch.nn.Module, compute_dtype: torch.dtype, packed: Mapping[str, torch.Tensor]
) -> None:
    """Replace the linear layers of a model whose weights are packed by diffusers' layers for them.

    Args:
        model (`torch.nn.Module`): The model.
        compute_dtype (`torch.dtype`): Data type that the layers compute in.
        packed (`Mapping[str, torch.Tensor]`): The packed weights by the model's keys.
    """
    # The package `gguf` is needed to import this.
    from diffusers.quantizers.gguf.utils import _replace_with_gguf_linear

    _replace_with_gguf_linear(model, compute_dtype, packed)


def has_offload_hook(module: torch.nn.Module) -> bool:
    """Whether accelerate or group offloading moves the module's weights by itself."""
    return any(hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook") for part in module.modules())


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether a whole module is compiled, by `torch.compile(module)` or `module.compile()`."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def compiler_backend(name: str) -> Callable[..., Any]:
    """Return what compiles a traced graph for `torch.compile`, by the name of a backend such as `"inductor"`."""
    return torch._dynamo.lookup_backend(name)


def recompilations_allowed(count: int) -> AbstractContextManager[Any]:
    """Return a context in which a function may be compiled so many times; torch would stop after 8."""
    return torch._dynamo.config.patch(recompile_limit=count, accumulated_recompile_limit=count)


def recompile_options(count: int) -> dict[str, int]:
    """Return arguments of `torch.compile` that allow so many compilations in all threads, if this torch has them."""
    return {"recompile_limit": count} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}


def offload_all_but(pipe: Any, names: Collection[str]) -> None:
    """Send every component under model CPU offload back to the CPU, except the named ones.

    accelerate's own chain sends back only the model before the current one. Without model offload nothing happens.
    """
    kept = [getattr(pipe, name, None) for name in names]
    for hook in getattr(pipe, "_all_hooks", ()):
        if isinstance(hook, UserCpuOffloadHook) and not any(hook.model is module for module in kept):
            hook.offload()


def active_caches(transformer: torch.nn.Module) -> dict[str, list[ModelHook]]:
    """Return the names of the caches a transformer runs with, however they were applied, and some of their hooks."""
    blocks: Any = getattr(transformer, "transformer_blocks", None)
    modules = [transformer, *(blocks[0].modules() if blocks else ())]
    config = getattr(transformer, "_cache_config", None)
    found: dict[str, list[ModelHook]] = {} if config is None else {type(config).__name__: []}
    for module in modules:
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}).values():
            if type(hook) in CACHE_HOOKS:
                found.setdefault(CACHE_HOOKS[type(hook)], []).append(hook)
    return found


def hooks_without_branches(transformer: torch.nn.Module) -> list[Any]:
    """Return the cache hooks that keep one state for all cache contexts, which would mix the branches of guidance."""
    kinds = (FasterCacheBlockHook, FasterCacheDenoiserHook, PyramidAttentionBroadcastHook)
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    return [hook for each in registries for hook in getattr(each, "hooks", {}).values() if isinstance(hook, kinds)]


def state_hooks(module: torch.nn.Module) -> set[str]:
    """Return the names of hooks that move or cast weights or hold state, which serve one thread at a time."""
    names: set[str] = set()
    for part in module.modules():
        if hasattr(part, "_hf_hook"):
            names.add("accelerate's offloading")
        names |= set(getattr(part.__dict__.get("_diffusers_hook"), "hooks", ()))
    return names


def reset_caches(transformer: torch.nn.Module) -> None:
    """Empty the caches of a transformer, so that an interrupted call leaves nothing to the next one."""
    if hasattr(transformer, "_reset_stateful_cache"):
        transformer._reset_stateful_cache()  # type: ignore[operator]


def borrow_weights(block: torch.nn.Module, layer: torch.nn.Module, **inputs: Any) -> dict[str, torch.Tensor] | None:
    """Return the weights of a layer as they are while its block runs, or `None` if the layer can always be called.

    Group offloading and similar hooks bring the weights of a whole block when the block is called, and take them away
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
    # Without a chain of diffusers' hooks, the wrapper around the block's function is accelerate's.
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
    """Return state dict and metadata of a LoRA repository, folder, file or dict; see `lora_state_dict`."""
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
def offloading_suspended(pipe: Any, weights: bool = False) -> Iterator[None]:
    """Remove accelerate's hooks from a pipeline's modules, then restore all offloading, new modules included.

    Args:
        pipe (`DiffusionPipeline`): The pipeline.
        weights (`bool`, *optional*, defaults to `False`):
            Whether weights that a VRAM budget wrote to disk are brought back into memory.
    """
    budget = vram_budget_of(pipe)
    if budget is not None:
        with budget.suspended(weights):
            yield
        return
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


def vram_budget_of(pipe: Any) -> Any:
    """Return the VRAM budget of a pipeline's models, even if another pipeline that shares them set it."""
    for component in (pipe if isinstance(pipe, Mapping) else pipe.components).values():
        hooks = getattr(getattr(component, "_diffusers_hook", None), "hooks", {})
        if "vram_budget" in hooks:
            return hooks["vram_budget"].budget
    return None


def remove_hook(module: torch.nn.Module, name: str) -> None:
    """Remove a hook from a module without breaking the hooks above it.

    diffusers' own `remove_hook` overwrites the `new_forward` of the hook above, which would disable a cache.
    """
    registry = module.__dict__.get("_diffusers_hook")
    if registry is None or registry.get_hook(name) is None:
        return
    references = registry._fn_refs
    index = registry._hook_order.index(name) + 1
    above = references[index] if index < len(references) else None
    forward = None if above is None or above.original_forward is None else above.forward
    registry.remove_hook(name, recurse=False)
    if above is not None and forward is not None:
        above.original_forward, above.forward = above.forward, forward
    if not registry.hooks:
        del module._diffusers_hook
        if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
            del module.forward


def register_innermost(module: torch.nn.Module, hook: Any, name: str) -> None:
    """Register a hook below the existing ones, so that it does not run when one of them skips the forward pass."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if not registry.hooks:
        registry.register_hook(hook, name)
        return
    hooks, order, references, forward = registry.hooks, registry._hook_order, registry._fn_refs, module.forward
    lowest = references[0]
    registry.hooks, registry._hook_order, registry._fn_refs = {}, [], []
    module.forward = lowest.forward if lowest.original_forward is None else lowest.original_forward
    registry.register_hook(hook, name)
    if lowest.original_forward is None:
        lowest.forward = module.forward
    else:
        lowest.original_forward = module.forward
    registry.hooks |= hooks
    registry._hook_order += order
    registry._fn_refs += references
    module.forward = forward


def remove_group_offloading(module: torch.nn.Module) -> None:
    """Remove all group offloading hooks from a module and its submodules."""
    for part in list(module.modules()):
        hooks = getattr(part.__dict__.get("_diffusers_hook"), "hooks", {})
        group = getattr(hooks.get(GROUP_OFFLOADING), "group", None)
        for name in (_LAZY_PREFETCH_GROUP_OFFLOADING, _LAYER_EXECUTION_TRACKER, GROUP_OFFLOADING):
            remove_hook(part, name)
        if group is not None:
            # A forward pass in progress still calls the hook, which must no longer move anything.
            group.modules, group.parameters, group.buffers = [], [], []
    registry = module.__dict__.get("_diffusers_hook")
    if registry is not None:
        registry.invalidate_child_registries_cache()


def expand_linears(transformer: torch.nn.Module, lora_state_dict: dict[str, torch.Tensor]) -> bool:
    """Widen with zeros the Linears that a control LoRA needs wider; return whether there were any."""
    return FluxLoraLoaderMixin._maybe_expand_transformer_param_shape_or_error_(transformer, lora_state_dict)


def restore_linears(pipe: Any) -> None:
    """Restore the weights of Linears that [`expand_linears`] widened, once all LoRAs are gone."""
    if getattr(getattr(pipe, "transformer", None), "_overwritten_params", None):
        FluxLoraLoaderMixin.unload_lora_weights(pipe, reset_to_overwritten_params=True)
        pipe.transformer._overwritten_params = None


def modular_text_embeds(components: Any, texts: list[str], length: int, device: torch.device) -> torch.Tensor:
    """Return T5 hidden states `(len(texts), length, 4096)`, as the blocks of a modular pipeline encode a prompt."""
    # These modules are slow to import, and few need them.
    from diffusers.modular_pipelines.flux.encoders import FluxTextEncoderStep

    return FluxTextEncoderStep._get_t5_prompt_embeds(components, texts, length, device)
