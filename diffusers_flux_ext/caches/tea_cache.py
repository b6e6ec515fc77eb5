"""TeaCache: steps whose input has hardly changed reuse what the blocks added at the last computed step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch.utils.hooks import RemovableHandle

from .._compat import HookRegistry, ModelHook
from .._sharing import LoopStateManager, guard_forward, loop_key, unguard_forward
from .foreign import foreign_cache
from .rules import check_cache_runs_split
from .tea_cache_step import RunningForward, TeaCacheState


HOOK = "diffusers_flux_ext_tea_cache"
ARGUMENTS = tuple(inspect.signature(FluxTransformer2DModel.forward).parameters)[1:]


@dataclass(frozen=True)
class TeaCacheConfig:
    """Settings of TeaCache ([paper](https://huggingface.co/papers/2411.19108)) for FLUX.1.

    Args:
        threshold (`float`):
            How much estimated change may accumulate before a step is computed again; 0 skips nothing. The paper's
            authors report about 1.5 times the speed at 0.25, 1.8 at 0.4, 2.0 at 0.6 and 2.25 at 0.8 for 28 steps.
        num_inference_steps (`int`, *optional*):
            Steps of a call, of which the last one is always computed. The pipelines of this package set it
            themselves; diffusers' own pipelines need it here.

    Raises:
        ValueError: if `threshold` is negative or `num_inference_steps` is less than 1.
    """

    threshold: float
    num_inference_steps: int | None = None

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"`threshold` of TeaCache must be 0 or more, got {self.threshold}.")
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"`num_inference_steps` must be at least 1, got {self.num_inference_steps}.")


class SkippableBlocks(torch.nn.ModuleList):
    """A transformer's list of blocks, which is empty during a forward pass whose blocks TeaCache skips.

    The blocks are then not called at all, so none of their hooks, compiled code or adapters runs.
    """

    tea_cache: TeaCacheHook | None

    def __iter__(self) -> Iterator[torch.nn.Module]:
        cache = self.__dict__.get("tea_cache")
        return iter(()) if cache is not None and cache.skips_blocks() else super().__iter__()


class TeaCacheHook(ModelHook):
    """Decides at each forward pass of the transformer whether its blocks run.

    Args:
        config (`TeaCacheConfig`): The settings.
    """

    _is_stateful = True

    def __init__(self, config: TeaCacheConfig) -> None:
        super().__init__()
        self.config = config
        self.state_manager = LoopStateManager(TeaCacheState)
        self._running: RunningForward | None = None
        self._loop: Any = None
        self._handles: list[RemovableHandle] = []

    def pre_forward(
        self, module: torch.nn.Module, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Find the branch's state, and observe the embedders and the last norm during one forward pass."""
        self.stop_listening()
        check_cache_runs_split(module)
        context = self.state_manager.context
        num_steps = context.num_inference_steps or self.config.num_inference_steps
        if num_steps is None:
            raise ValueError(
                "TeaCache always computes the last step, but this pipeline does not tell how many steps there are. "
                "Give `TeaCacheConfig(threshold, num_inference_steps=...)`."
            )
        arguments = {**dict(zip(ARGUMENTS, args)), **kwargs}
        state = self.state_manager.get_state()
        if context.step_index is None:
            state.reset_when_time_rises(arguments["timestep"])
        else:
            if context.step_index == 0:
                state.reset()
            state.step = context.step_index
        self._listen(module, RunningForward(module, state, arguments, num_steps))
        return args, kwargs

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        """Count the step."""
        if self._running is not None:
            self._running.state.step = (self._running.state.step + 1) % self._running.num_steps
        self.stop_listening()
        return output

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """Forget all branches of this loop; diffusers' pipelines call it at the end."""
        if self._loop is loop_key():
            self.stop_listening()
        self.state_manager.reset()
        return module

    def stop_listening(self) -> None:
        """End a forward pass, including one that failed."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._running, self._loop = [], None, None

    def skips_blocks(self) -> bool:
        """Whether the running forward pass, if this loop has one, leaves its blocks out."""
        return self._running is not None and self._loop is loop_key() and self._running.decide(self.config.threshold)

    def _listen(self, transformer: Any, running: RunningForward) -> None:
        def keep_embedded(layer: Any, inputs: Any, output: torch.Tensor) -> None:
            running.embedded = output

        def keep_temb(layer: Any, inputs: Any, output: torch.Tensor) -> None:
            running.temb = output

        def finish(layer: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (running.finish_blocks(inputs[0]), *inputs[1:])

        # Set up again for each pass: a LoRA may have replaced the embedder's layer.
        self._running, self._loop = running, loop_key()
        self._handles = [
            transformer.x_embedder.register_forward_hook(keep_embedded),
            transformer.time_text_embed.register_forward_hook(keep_temb),
            transformer.norm_out.register_forward_pre_hook(finish),
        ]


def apply_tea_cache(transformer: FluxTransformer2DModel, config: TeaCacheConfig) -> None:
    """Let a FLUX.1 transformer skip its blocks at steps whose input has hardly changed.

    Each branch of guidance has its own state, which is empty when a call starts. One decision is made for the
    whole batch. Residuals of ControlNets and reference tokens are part of what is reused, so they count once. A step
    is computed when the tokens or their positions, the batch, or the kinds of inputs differ from the last step's.

    Args:
        transformer (`FluxTransformer2DModel`):
            Stock or this package's; with adapters, fused projections, compiled blocks and offloading in any order.
        config (`TeaCacheConfig`): The settings.

    Raises:
        TypeError:
            if `transformer` is not a FLUX.1 transformer, for example one wrapped by `torch.compile`, or `config` is
            something else.
        ValueError: if a cache is enabled already, or if the transformer has no double blocks.
    """
    if not isinstance(transformer, FluxTransformer2DModel):
        raise TypeError(
            f"`transformer` must be a `FluxTransformer2DModel`, got a {type(transformer).__name__}. Compile the "
            f"blocks of one with `transformer.compile_repeated_blocks()` rather than the whole model."
        )
    if not isinstance(config, TeaCacheConfig):
        raise TypeError(
            f"`config` is a {type(config).__name__}; expected a `TeaCacheConfig`, such as `TeaCacheConfig(0.2)`."
        )
    if transformer.is_cache_enabled:
        raise ValueError(
            f"The transformer already runs with {type(transformer._cache_config).__name__}. Remove that cache first, "
            f"with `disable_cache()` or `remove_tea_cache(transformer)`."
        )
    foreign = foreign_cache(transformer)
    if foreign is not None:
        raise ValueError(f"The transformer already runs with {foreign.name}. Take that off first.")
    if not len(transformer.transformer_blocks):
        raise ValueError(
            "TeaCache measures change at the first double block, but this transformer has no double blocks."
        )
    hook = TeaCacheHook(config)
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.register_hook(hook, HOOK)
    registry.invalidate_child_registries_cache()
    for blocks in _block_lists(transformer):
        blocks.__class__ = SkippableBlocks
        blocks.tea_cache = hook
    transformer._cache_config = config
    # What the hook records during a forward pass belongs to one thread.
    guard_forward(transformer)


def remove_tea_cache(transformer: FluxTransformer2DModel) -> None:
    """Undo [`apply_tea_cache`]; without it nothing happens.

    Args:
        transformer (`FluxTransformer2DModel`): The transformer.
    """
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    hook = registry.get_hook(HOOK)
    if hook is None:
        return
    hook.stop_listening()
    registry.remove_hook(HOOK, recurse=False)
    registry.invalidate_child_registries_cache()
    for blocks in _block_lists(transformer):
        blocks.__class__ = torch.nn.ModuleList
        del blocks.tea_cache
    transformer._cache_config = None
    unguard_forward(transformer)


def _block_lists(transformer: FluxTransformer2DModel) -> tuple[Any, Any]:
    return transformer.transformer_blocks, transformer.single_transformer_blocks
