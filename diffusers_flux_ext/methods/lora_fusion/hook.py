"""LoRA-Fusion on a running transformer: the gates of a [`FluxLoRAFusion`] over the LoRAs that PEFT has loaded.

A gate normalises the whole output of a layer as DiffSynth-Studio has it, where queries, keys, values and, in single
blocks, the feed-forward projection are one layer. Here they are several Linears that run one after the other: every
Linear runs once, at its own time, and what the gate adds is written into all outputs when the last one is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn

from ..._sharing import guard_forward, unguard_forward
from ...lora.errors import LoRAError
from ...lora.keys import parse_lora_key
from ...lora.loading.deltas import DeltaVariant
from ...lora.loading.plan import adapter_names as loaded_adapters
from .gates import FluxLoRAFusion, LoRAGate


_ATTRIBUTE = "_flux_ext_lora_fusion"
_QKV, _ADDED_QKV = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


class _Recording(LoraVariant):
    """Makes PEFT's layer pass on what an adapter adds, instead of adding it."""

    def __init__(self, part: _Part, replaced: LoraVariant | None) -> None:
        self.part, self.replaced = part, replaced

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        self.part.added[active_adapter] = self._alone(module, active_adapter, x, result, **kwargs).to(result.dtype)
        return result

    def _alone(self, module: Any, name: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        if self.replaced is None:
            down, up = module.lora_A[name], module.lora_B[name]
            return up(down(module.lora_dropout[name](x))) * module.scaling[name]
        if isinstance(self.replaced, DeltaVariant):
            return self.replaced.forward(module, name, x, torch.zeros_like(result), **kwargs)
        # PEFT's own variants read the result that they are added to.
        return self.replaced.forward(module, active_adapter=name, x=x, result=result, **kwargs) - result

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise LoRAError(
            "LoRAs under LoRA-Fusion cannot be fused into the weights, since their gates depend on the image. Call "
            "`disable_lora_fusion` first."
        )

    merge_safe = merge_unsafe = unmerge = _refuse


class _Part:
    """A Linear of the transformer, alone or beside others of one layer: its output, and what each LoRA adds to it."""

    def __init__(self, path: str, layer: Any, owner: _GatedLayer) -> None:
        self.path, self.layer, self.owner = path, layer, owner
        self.width: int = layer.out_features
        self.output: Tensor | None = None
        self.added: dict[str, Tensor] = {}

    def clear(self) -> None:
        self.output = None
        self.added.clear()

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Forward hook of the Linear."""
        return self.owner.take(self, output)

    def recorded(self, name: str) -> Tensor:
        """Return what a LoRA adds to the Linear; zeros if nothing."""
        found = self.added.get(name)
        return torch.zeros_like(self.output) if found is None else found  # type: ignore[arg-type]

    def run_adapters(self, x: Tensor, output: Tensor) -> None:
        """Record the LoRAs of a layer that is not called, because diffusers has fused it with others."""
        layer = self.layer
        if isinstance(layer, LoraLayer) and not layer.disable_adapters:
            for name in layer.active_adapters:
                if name in layer.lora_A:
                    given = x.to(layer.lora_A[name].weight.dtype)
                    layer.lora_variant[name].forward(layer, active_adapter=name, x=given, result=output)


class _GatedLayer:
    """A layer with a gate: one Linear, or those that are one layer in DiffSynth-Studio."""

    def __init__(self, gate: LoRAGate, names: frozenset[str] | None, scale: float) -> None:
        self.gate, self.names, self.scale = gate, names, scale
        self.parts: list[_Part] = []
        self.ends_in_mlp = False
        self.changed_mlp: Tensor | None = None

    def clear(self) -> None:
        self.changed_mlp = None
        for part in self.parts:
            part.clear()

    def take(self, part: _Part, output: Tensor) -> Tensor | None:
        """Receive the output of a part; the last one completes the layer."""
        if part.output is not None:
            raise self._incomplete(f"`{part.path}` ran twice")
        part.output = output
        if any(other.output is None for other in self.parts):
            return None
        added = self._added()
        if added is not None and len(self.parts) == 1:
            output = output + added
        elif added is not None:
            for other, share in zip(self.parts, added.split([other.width for other in self.parts], dim=-1)):
                if other.added and other.output is not None:
                    # The outputs have been handed out, but nothing has read them: see `before_norm`.
                    other.output += share
        last = self.parts[-1]
        changed_mlp = last.output if self.ends_in_mlp and last.added else None
        self.clear()
        self.changed_mlp = changed_mlp
        return output

    def _added(self) -> Tensor | None:
        names = dict.fromkeys(name for part in self.parts for name in part.added)
        gated = [name for name in names if self.names is None or name in self.names]
        total = None
        if gated and self.scale != 0:
            base = _join([part.output for part in self.parts if part.output is not None])
            total = self.gate(base, [self._recorded(name) for name in gated])
            total = total if self.scale == 1 else total * self.scale
        for name in names:
            if name not in gated:
                total = self._recorded(name) if total is None else total + self._recorded(name)
        return total

    def _recorded(self, name: str) -> Tensor:
        return _join([part.recorded(name) for part in self.parts])

    def _incomplete(self, what: str) -> RuntimeError:
        paths = [part.path for part in self.parts]
        self.clear()
        return RuntimeError(
            f"{what} before all of {paths} had run once. LoRA-Fusion needs attention processors that call each of "
            "them once, and no cache that skips attention layers alone; call `disable_lora_fusion` to go without."
        )

    @property
    def awaits_mlp(self) -> bool:
        """Whether the feed-forward projection of a single block has run and will be changed."""
        return self.ends_in_mlp and bool(self.parts[-1].added)

    def before_norm(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of the norm of the queries, which is the first to read a part."""
        self.check_complete("The queries were read")

    def check_complete(self, what: str) -> None:
        if any(part.output is not None for part in self.parts):
            raise self._incomplete(what)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=-1)


class _FusedProjection:
    """The Linear that `fuse_qkv_projections` has made of queries, keys and values."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts

    def after(self, module: nn.Module, args: Any, output: Tensor) -> None:
        for part, view in zip(self.parts, output.split([part.width for part in self.parts], dim=-1)):
            part.run_adapters(args[0], view)
            part.owner.take(part, view)


class _SingleBlockMLP:
    """The activation of a single block, which reads `proj_mlp` before the attention has run, so it is deferred."""

    def __init__(self, layer: _GatedLayer, activation: nn.Module) -> None:
        self.layer, self.activation = layer, activation

    def before_activation(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # Not a view, which would change together with the output while autograd holds it.
        return (args[0].new_empty(*args[0].shape[:-1], 0),) if self.layer.awaits_mlp else None

    def before_output(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Append the activation to what the block's last Linear reads."""
        self.layer.check_complete("The block's `proj_out` ran")
        hidden, self.layer.changed_mlp = self.layer.changed_mlp, None
        # Not through the activation itself, whose hook would defer it again.
        return None if hidden is None else (torch.cat([args[0], self.activation.forward(hidden)], dim=-1),)


class _Fusion:
    """The active gates of a transformer."""

    def __init__(self, fusion: FluxLoRAFusion, names: frozenset[str] | None, scale: float) -> None:
        self.fusion, self.names, self.scale = fusion, names, scale
        self.layers: list[_GatedLayer] = []
        self.recordings: list[tuple[Any, str, _Recording]] = []
        self.handles: list[Any] = []
        self.seen: Any = None
        self.handle: Any = None

    def before(self, transformer: nn.Module, args: Any) -> None:
        """Forward pre-hook of the transformer: LoRAs may have been loaded or removed."""
        if torch.compiler.is_compiling():
            return
        if self.seen != _state_of(transformer):
            self.detach()
            self.attach(transformer)
        for layer in self.layers:
            layer.clear()

    def attach(self, transformer: nn.Module) -> None:
        modules = dict(transformer.named_modules())
        for name, gate in self.fusion.gates.items():
            key = parse_lora_key(f"{name}.lora_A.weight")
            paths = [target.removeprefix("transformer.") for target in key.targets] if key is not None else []
            # A copy for counting memory has only a few of the blocks.
            if any(isinstance(modules.get(path), LoraLayer) for path in paths):
                self._attach_layer(_GatedLayer(gate, self.names, self.scale), paths, modules)
        self.seen = _state_of(transformer)

    def _attach_layer(self, layer: _GatedLayer, paths: Sequence[str], modules: dict[str, Any]) -> None:
        layer.parts = [_Part(path, modules[path], layer) for path in paths]
        self.layers.append(layer)
        fused = _fused_parts(layer, modules)
        for part in layer.parts:
            if part not in fused:
                self.handles.append(part.layer.register_forward_hook(part.after))
            if isinstance(part.layer, LoraLayer):
                for adapter in list(part.layer.lora_A):
                    self._record(part, adapter)
        block, _, last = paths[-1].rpartition(".")
        if len(paths) > 1:
            attention, _, queries = paths[0].rpartition(".")
            norm = modules[f"{attention}.{'norm_q' if queries in _QKV else 'norm_added_q'}"]
            self.handles.append(norm.register_forward_pre_hook(layer.before_norm))
        if last == "proj_mlp":
            layer.ends_in_mlp = True
            mlp = _SingleBlockMLP(layer, modules[f"{block}.act_mlp"])
            self.handles.append(mlp.activation.register_forward_pre_hook(mlp.before_activation))
            self.handles.append(modules[f"{block}.proj_out"].register_forward_pre_hook(mlp.before_output))
        if fused:
            attention, _, kind = fused[0].path.rpartition(".")
            joined = modules[f"{attention}.{'to_qkv' if kind in _QKV else 'to_added_qkv'}"]
            self.handles.append(joined.register_forward_hook(_FusedProjection(fused).after))

    def _record(self, part: _Part, adapter: str) -> None:
        recording = _Recording(part, part.layer.lora_variant.get(adapter))
        part.layer.lora_variant[adapter] = recording
        self.recordings.append((part.layer, adapter, recording))

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        for layer, adapter, recording in self.recordings:
            if layer.lora_variant.get(adapter) is not recording:
                continue
            if recording.replaced is None or adapter not in layer.lora_A:
                del layer.lora_variant[adapter]
            else:
                layer.lora_variant[adapter] = recording.replaced
        self.layers, self.recordings, self.handles = [], [], []


def _fused_parts(layer: _GatedLayer, modules: dict[str, Any]) -> list[_Part]:
    parts = [part for part in layer.parts if part.path.rpartition(".")[2] in (*_QKV, *_ADDED_QKV)]
    fused = bool(parts) and getattr(modules[parts[0].path.rpartition(".")[0]], "fused_projections", False)
    return parts if fused else []


def _state_of(transformer: nn.Module) -> tuple[list[tuple[str, int]], list[Any], list[bool]]:
    """Return what decides where hooks go, configs included, so that no freed config's id is used again."""
    configs = getattr(transformer, "peft_config", {})
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)  # type: ignore[misc]
    fused = [bool(getattr(block.attn, "fused_projections", False)) for block in blocks]
    return [(name, id(config)) for name, config in configs.items()], list(configs.values()), fused


def enable_lora_fusion(
    model: Any, fusion: FluxLoRAFusion, adapter_names: str | Sequence[str] | None = None, scale: float = 1.0
) -> None:
    r"""Weigh LoRAs against each other by learned gates, instead of adding them up.

    See [AutoLoRA](https://huggingface.co/papers/2508.02107). The LoRAs are those that are loaded and active, now or
    later; their weights (`set_adapters`) multiply what they add before the gate sees it. Layers without a gate, such
    as the embedders, get the plain sum, as do text encoders. One LoRA is gated too. LoRAs may be loaded, switched and
    unloaded at any time.

    Args:
        model (`DiffusionPipeline` or `FluxTransformer2DModel`):
            A FLUX.1 pipeline of any kind, or its transformer.
        fusion (`FluxLoRAFusion`):
            The gates. They may stay on the CPU, at the cost of moving them in every step.
        adapter_names (`str` or `Sequence[str]`, *optional*):
            The LoRAs under the gates; others are added as before. All by default.
        scale (`float`, *optional*, defaults to 1.0):
            Factor of the gated LoRAs; 0 leaves them out.

    Raises:
        TypeError: If the model is not a FLUX.1 transformer or `fusion` not a [`FluxLoRAFusion`].
        ValueError: If the sizes do not fit, an adapter is unknown or fused into the weights, or the scale is not
            finite.
    """
    transformer = _transformer_of(model)
    if not isinstance(fusion, FluxLoRAFusion):
        raise TypeError(f"`fusion` is a {type(fusion).__name__}; expected a FluxLoRAFusion.")
    names = None if adapter_names is None else [adapter_names] if isinstance(adapter_names, str) else adapter_names
    _check(transformer, fusion, names, scale)
    disable_lora_fusion(transformer)
    state = _Fusion(fusion, None if names is None else frozenset(names), float(scale))
    state.attach(transformer)
    # The layers note what runs in one forward pass, so one thread at a time may run it.
    guard_forward(transformer)
    state.handle = transformer.register_forward_pre_hook(state.before)
    setattr(transformer, _ATTRIBUTE, state)


def disable_lora_fusion(model: Any) -> None:
    """Add LoRAs up as before [`enable_lora_fusion`], to the bit. Without active gates nothing happens.

    Args:
        model (`DiffusionPipeline` or `FluxTransformer2DModel`):
            The pipeline, or its transformer.

    Raises:
        TypeError: If the model is not a FLUX.1 transformer.
    """
    transformer = _transformer_of(model)
    state: _Fusion | None = getattr(transformer, _ATTRIBUTE, None)
    if state is not None:
        state.handle.remove()
        state.detach()
        delattr(transformer, _ATTRIBUTE)
        unguard_forward(transformer)


def _transformer_of(model: Any) -> FluxTransformer2DModel:
    transformer = getattr(model, "transformer", model)
    transformer = getattr(transformer, "_orig_mod", transformer)
    if not isinstance(transformer, FluxTransformer2DModel):
        raise TypeError(f"Expected a FLUX.1 pipeline or its transformer; got a {type(model).__name__}.")
    return transformer


def _check(
    transformer: FluxTransformer2DModel, fusion: FluxLoRAFusion, names: Sequence[str] | None, scale: float
) -> None:
    config, own = fusion.config, transformer.config
    width = own.num_attention_heads * own.attention_head_dim
    if config.inner_dim != width:
        raise ValueError(f"The gates are for a transformer of width {config.inner_dim}; this one is {width} wide.")
    for kind in ("num_layers", "num_single_layers"):
        if getattr(config, kind) > getattr(own, kind):
            raise ValueError(
                f"The gates are for a transformer with `{kind}` {getattr(config, kind)}; this one has only "
                f"{getattr(own, kind)}, so that its blocks are not those that the gates were trained on."
            )
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise ValueError(f"`scale` is {scale!r}; expected a finite number.")
    known = loaded_adapters(transformer)
    if names is not None and (not names or not set(names) <= set(known)):
        raise ValueError(f"`adapter_names` is {list(names)}; the transformer has the adapters {known}.")
    merged = {n for m in transformer.modules() if isinstance(m, LoraLayer) for n in m.merged_adapters}
    if merged:
        raise ValueError(f"The adapters {sorted(merged)} are fused into the weights. Call `unfuse_lora` first.")
