"""Reading a LoRA's state dict: every key taken apart, every layer checked, nothing dropped."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.layouts import list_keys
from ..errors import ForeignLoRAError, LoRAError, UnknownLoRAKeysError, naming_files
from ..files import LoRASource, nonfinite, open_lora
from ..keys import LoRAKey, is_extra, parse_lora_key
from ..updates import PRODUCTS, Bias, LoHa, LoKr, LoRA, StoredLayer, Update, update_of
from ..updates.exact import lossless
from .detection import describe_format
from .families import find_checkpoint, find_foreign, find_qwen_image
from .hub import find_source
from .scale import USABLE, PeftScales, is_usable, layer_scale, read_peft_scales


logger = logging.getLogger(__name__)

# What a LoRA may be stored in: everything else is not a number that a weight can be multiplied with.
_DTYPES = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
})  # fmt: skip
_MATRICES = LoRA.own | LoHa.own | LoKr.own
# The largest matrix that a LoRA of FLUX.1 updates, T5's embedding, has half as many values.
MAX_VALUES = 2**28
# Outputs and inputs of diffusers' layers in units of the model's width; `None` where they are something else.
_SIZES: dict[str, tuple[int | None, int | None]] = {
    "ff.net.0.proj": (4, 1), "ff.net.2": (1, 4), "ff_context.net.0.proj": (4, 1), "ff_context.net.2": (1, 4),
    "norm1.linear": (6, 1), "norm1_context.linear": (6, 1), "norm.linear": (3, 1), "proj_mlp": (4, 1),
    "single.proj_out": (1, 5), "x_embedder": (1, None), "context_embedder": (1, None), "linear_1": (1, None),
    "norm_out.linear": (2, 1), "proj_out": (None, 1),
}  # fmt: skip


@dataclass(frozen=True)
class LoRAFile:
    """A LoRA file that has been read.

    Attributes:
        layers (`dict[str, StoredLayer]`): The layers by the names that the file gives them, in its order.
        modules (`dict[str, tuple[str, int]]`):
            For every diffusers layer (`"transformer.transformer_blocks.0.attn.to_q"`) the layer of the file that
            holds it, and which of its parts it is.
        extras (`dict[str, torch.Tensor]`): Textual inversions stored in the file.
        metadata (`dict[str, str]`): The header.
        unknown (`tuple[str, ...]`): Keys that were left out because `strict=False`.
        format (`str`): The name of the format, a diagnosis only.
        peft (`PeftScales`, *optional*): PEFT's config from the header or from `adapter_config`.
        tensors (`Mapping[str, Any]`): The tensors as they are in the file.
    """

    layers: dict[str, StoredLayer]
    modules: dict[str, tuple[str, int]]
    extras: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    format: str = ""
    peft: PeftScales | None = None
    tensors: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def updates(self) -> Iterator[tuple[str, Update]]:
        """Return every diffusers layer with its update, one layer of the file at a time."""
        for name, layer in self.layers.items():
            for index, update in enumerate(layer.diffusers_updates()):
                target = layer.key.targets[index]
                if update is not None and self.modules.get(target) == (name, index):
                    yield target, update


def read(
    source: LoRASource,
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    default_alpha: float | None = None,
    strict: bool = True,
    hub: Mapping[str, Any] | None = None,
) -> LoRAFile:
    """Open and read a LoRA in any layout.

    Args:
        source (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`):
            A file, a folder with one, the tensors, or, given `hub`, a repository of the Hub.
        metadata (`Mapping[str, str]`, *optional*): A header that replaces the file's; `{}` ignores the header.
        adapter_config (`Mapping[str, Any]`, *optional*):
            PEFT's config, in place of the `adapter_config.json` beside the file.
        default_alpha (`float`, *optional*): Alpha of layers that do not give one.
        strict (`bool`, *optional*, defaults to `True`):
            Whether unknown keys, and numbers that are not finite, are errors.
        hub (`Mapping[str, Any]`, *optional*):
            `weight_name`, `subfolder` and the other arguments for the Hub. The source may then be a repository.

    Returns:
        `LoRAFile`: What it holds.

    Raises:
        LoRAError: If it cannot be read; see [`read_lora`].
    """
    if hub is not None:
        source, metadata, adapter_config = find_source(source, metadata, adapter_config, hub)
    with naming_files(source):
        opened = open_lora(source)
    # Of a folder, the file in it.
    with naming_files(opened.path or source):
        header = opened.metadata if metadata is None else dict(metadata)
        wrong = {key: value for key, value in header.items() if not isinstance(key, str) or not isinstance(value, str)}
        if wrong:
            raise LoRAError(f"A header holds text only, but `metadata` has {wrong}.")
        config = opened.adapter_config if adapter_config is None else adapter_config
        file = read_lora(opened.tensors, header, config, default_alpha, strict)
        if strict and (broken := list(nonfinite(opened.tensors))):
            raise LoRAError(f"{len(broken)} tensors have NaN or infinite values: {list_keys(broken)}.")
    return replace(file, tensors=opened.tensors)


def read_lora(
    state_dict: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    adapter_config: Mapping[str, Any] | None = None,
    default_alpha: float | None = None,
    strict: bool = True,
) -> LoRAFile:
    """Read a LoRA in any layout.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`):
            The file's tensors; alphas may be numbers. Nothing is changed or copied.
        metadata (`Mapping[str, str]`, *optional*): The file's header.
        adapter_config (`Mapping[str, Any]`, *optional*): The content of PEFT's `adapter_config.json`.
        default_alpha (`float`, *optional*):
            Alpha of layers for which neither the tensors nor a config give one. Without it their scale is 1.
        strict (`bool`, *optional*, defaults to `True`):
            Whether unknown keys are an error; otherwise they are left out with a warning.

    Returns:
        `LoRAFile`: Its layers.

    Raises:
        ForeignLoRAError: If it belongs to another model or is not a static update of weights.
        UnknownLoRAKeysError: If keys are unknown and `strict`.
        LoRAError: If a layer is incomplete, has factors of incompatible shapes, or conflicts with the metadata or a
        duplicate entry.
    """
    metadata = dict(metadata or {})
    tensors = {str(key): _as_tensor(str(key), value) for key, value in state_dict.items()}
    parsed = {key: parse_lora_key(key) for key in tensors if not is_extra(key)}
    peft = read_peft_scales(metadata, adapter_config)
    _refuse_foreign(parsed, tensors)
    unknown = [key for key, found in parsed.items() if found is None]
    known = {key: found for key, found in parsed.items() if found is not None}
    named = describe_format(list(known.values()), metadata)
    _report_unknown(unknown, known, len(tensors), named, strict)
    _check_adapter_names(known)
    if default_alpha is not None and not is_usable(default_alpha):
        raise LoRAError(f"`default_alpha` is {default_alpha!r}; expected {USABLE}.")
    layers = {
        name: layer
        for name, keys in _group(known).items()
        if (layer := _read_layer(keys, {k.part: tensors[spelled] for spelled, k in keys}, peft, default_alpha))
    }
    _check_sizes(layers)
    if default_alpha is None and peft is None and (lost := lost_alpha(layers, metadata)):
        logger.warning("%s", lost)
    return LoRAFile(
        layers=layers,
        modules=_assign(layers),
        extras={key: tensor for key, tensor in tensors.items() if is_extra(key)},
        metadata=metadata,
        unknown=tuple(unknown),
        format=named,
        peft=peft,
    )


def lost_alpha(layers: Mapping[str, StoredLayer], metadata: Mapping[str, str]) -> str | None:
    """Return a sentence about a training alpha that is in the header but not in the tensors, if there is one."""
    try:
        alpha, rank = float(metadata["ss_network_alpha"]), float(metadata["ss_network_dim"])
    except (KeyError, TypeError, ValueError):
        return None
    if alpha == rank or any(layer.update.alpha is not None for layer in layers.values()):
        return None
    return (
        f"The header says that the LoRA was trained with alpha {alpha:g} at rank {rank:g}, the tensors say nothing: "
        f"its scale is taken as 1. Pass `default_alpha={alpha:g}` if it is too strong or too weak."
    )


def _as_tensor(key: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta or value.dtype not in _DTYPES:
            raise LoRAError(
                f"`{key}` is a {value.dtype} tensor on {value.device}; expected plain numbers with values."
            )
        return value.detach()
    if isinstance(value, int | float) and key.endswith(".alpha"):
        return torch.tensor(float(value))
    raise LoRAError(f"`{key}` holds a {type(value).__name__}; expected a tensor.")


def _refuse_foreign(parsed: Mapping[str, LoRAKey | None], tensors: Mapping[str, Tensor]) -> None:
    if not parsed:
        raise LoRAError(f"None of the {len(tensors)} keys is that of a LoRA.")
    unknown = [key for key, found in parsed.items() if found is None]
    # IA3 has a `weight` for every `on_input`, which alone would look like a checkpoint.
    telling = [*unknown, *(key for key, found in parsed.items() if found is not None and found.part == "on_input")]
    reason = find_foreign(telling) or (find_checkpoint(unknown) if len(unknown) == len(parsed) else None)
    reason = reason or find_qwen_image(parsed, {key: tensor.shape for key, tensor in tensors.items()})
    if reason:
        raise ForeignLoRAError(reason)


def _report_unknown(
    unknown: Sequence[str], known: Mapping[str, LoRAKey], total: int, named: str, strict: bool
) -> None:
    if not unknown:
        return
    error = UnknownLoRAKeysError(unknown, total, named if known else None)
    if strict or not known:
        raise error
    logger.warning("%s They are left out.", str(error).replace(" Pass `strict=False` to leave them out.", ""))


def _check_adapter_names(known: Mapping[str, LoRAKey]) -> None:
    names = sorted({key.adapter_name for key in known.values() if key.adapter_name})
    if len(names) > 1:
        raise LoRAError(f"The keys name several adapters: {names}. Save each to a file of its own.")


def _group(known: Mapping[str, LoRAKey]) -> dict[str, list[tuple[str, LoRAKey]]]:
    groups: dict[str, list[tuple[str, LoRAKey]]] = {}
    for spelled, key in known.items():
        groups.setdefault(key.prefix + key.body, []).append((spelled, key))
    return groups


def _read_layer(
    keys: Sequence[tuple[str, LoRAKey]],
    parts: dict[str, Tensor],
    peft: PeftScales | None,
    default_alpha: float | None,
) -> StoredLayer | None:
    name = keys[0][1].prefix + keys[0][1].body
    if len(parts) != len(keys):
        raise LoRAError(f"`{name}` has a part twice: {[spelled for spelled, _ in keys]}.")
    alpha = parts.pop("alpha", None)
    if "diagonal" in parts and parts["diagonal"].numel() == 0:
        # Training has taken all ranks from this layer of an AdaLoRA.
        return None
    if "diagonal" in parts and alpha is None and default_alpha is None and peft is None:
        raise LoRAError(
            f"`{name}` is a layer of an AdaLoRA, whose scale is in PEFT's `adapter_config.json` only. Give the folder "
            "that has both, or pass `adapter_config=` or `default_alpha=`."
        )
    parts = _without_diagonal(name, parts)
    key = keys[0][1]
    replaced = {"set", "set_weight"} & parts.keys()
    if replaced and not key.layer.is_norm:
        raise LoRAError(f"`{name}` replaces a whole matrix. Only norms can be replaced; use the `diff` to it instead.")
    update = replace(_read_update(name, parts), alpha=alpha)
    if "diff" in parts and parts["diff"].ndim != (1 if key.layer.is_norm else 2):
        raise LoRAError(f"`{name}.diff` has shape {tuple(parts['diff'].shape)}, which is not that of a weight here.")
    return StoredLayer(key, replace(update, scale=layer_scale(key, update, peft, default_alpha)))


def _without_diagonal(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn AdaLoRA's `up @ diag(e) @ down` (https://arxiv.org/abs/2303.10512) into a LoRA's `up @ down`."""
    rest = {part: tensor for part, tensor in parts.items() if part != "diagonal"}
    if "diagonal" not in parts:
        return rest
    values, down = parts["diagonal"], parts.get("down")
    if down is None or down.ndim != 2 or tuple(values.shape) != (down.shape[0], 1):
        shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        raise LoRAError(f"`{name}` is a broken layer of an AdaLoRA: expected one `lora_E` a rank, got {shapes}.")
    wide = torch.float64 if torch.float64 in (down.dtype, values.dtype) else torch.float32
    return {**rest, "down": lossless(down.to(wide) * values.to(wide), down.dtype)}


def _read_update(name: str, parts: Mapping[str, Tensor]) -> Update:
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    if not parts:
        raise LoRAError(f"`{name}` has an alpha and nothing that it scales.")
    wrong = sorted(part for part in parts if part in _MATRICES and len(shapes[part]) != 2)
    if wrong:
        raise LoRAError(f"`{name}` has parts {wrong} that are not matrices: {shapes}.")
    cores = sorted(part for part in parts if part.startswith(("lokr_t", "hada_t")))
    twice = [part for part in ("lokr_w1", "lokr_w2") if part in parts and {f"{part}_a", f"{part}_b"} & parts.keys()]
    if cores or twice:
        raise LoRAError(
            f"`{name}` has {cores or twice} beside {sorted(parts)}: such a product is not one of a Linear."
        )
    kinds = [kind for kind in PRODUCTS if kind.owns(parts)]
    broken = [kind.title for kind in kinds if not kind.is_complete(parts)]
    if broken:
        raise LoRAError(f"`{name}` has an incomplete {broken[0]}: only {shapes} is there.")
    if len(kinds) > 1:
        raise LoRAError(
            f"`{name}` has several updates of its matrix at once: {[kind.title for kind in kinds]} with {shapes}."
        )
    update = update_of(parts)
    if kinds and not update.fits():
        raise LoRAError(f"The factors of `{name}` do not chain: their shapes are {shapes}.")
    if kinds and update.out_features * (update.in_features or 1) > MAX_VALUES:
        raise LoRAError(
            f"`{name}` updates a matrix of shape {(update.out_features, update.in_features)}; expected no more than "
            f"{MAX_VALUES} values. Its factors have the shapes {shapes}."
        )
    return update


def _sizes(layer: StoredLayer) -> tuple[int | None, int | None]:
    outputs, inputs = 0, None
    for target in layer.key.layer.targets:
        name = target.removeprefix("transformer_blocks.{}.").removeprefix("time_text_embed.")
        if name == "single_transformer_blocks.{}.proj_out":
            name = "single.proj_out"
        name = name.removeprefix("single_transformer_blocks.{}.")
        name = "linear_1" if name.endswith("embedder.linear_1") else name
        size = _SIZES.get(name, (1, 1))
        if size[0] is None:
            return size
        outputs, inputs = outputs + size[0], size[1]
    return outputs, inputs


def _check_sizes(layers: Mapping[str, StoredLayer]) -> None:
    """Check the layers of the transformer against the width that most of them have."""
    widths: dict[str, set[float]] = {}
    for name, layer in layers.items():
        if layer.key.component != "transformer" or layer.key.layer.is_norm or isinstance(layer.update.inner, Bias):
            continue
        features = (layer.update.out_features, layer.update.in_features)
        widths[name] = {have / size for have, size in zip(features, _sizes(layer)) if size and have is not None}
    counts = Counter(width for found in widths.values() for width in found)
    if not counts:
        return
    width = counts.most_common(1)[0][0]
    for name, found in widths.items():
        if found != {width}:
            update = layers[name].update
            raise LoRAError(
                f"`{name}` updates a matrix of shape {(update.out_features, update.in_features)}, which is not that "
                f"of this layer in a model {width:g} wide, as most layers of the file have it."
            )


def _assign(layers: Mapping[str, StoredLayer]) -> dict[str, tuple[str, int]]:
    modules: dict[str, tuple[str, int]] = {}
    for name, layer in layers.items():
        for index, target in enumerate(layer.key.targets):
            if target not in modules:
                modules[target] = (name, index)
            elif not _same_update(layers, modules[target], (name, index)):
                raise LoRAError(
                    f"The file updates `{target}` twice and differently: as `{modules[target][0]}` and as `{name}`."
                )
    return modules


def _same_update(layers: Mapping[str, StoredLayer], first: tuple[str, int], second: tuple[str, int]) -> bool:
    updates = [layers[name].diffusers_updates()[index] for name, index in (first, second)]
    if updates[0] is None or updates[1] is None:
        return updates[0] is updates[1]
    dense = [update.dense(torch.float64) for update in updates if update is not None]
    if dense[0] is None or dense[1] is None or dense[0].shape != dense[1].shape:
        return dense[0] is dense[1] and updates[0].parts.keys() == updates[1].parts.keys()
    return bool((dense[0] - dense[1]).norm() <= 1e-6 * dense[0].norm())
