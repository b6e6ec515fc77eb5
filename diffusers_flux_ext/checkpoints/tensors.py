"""Tensors of any source, read when they are needed: safetensors files, GGUF files, pickles and state dicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .gguf_files import dequantised, is_gguf, logical_shape, read_gguf
from .layouts import TensorRecipe
from .messages import list_keys, shorten
from .modules import check_floating, check_shapes
from .reading import DTYPES, SAFETENSORS_SUFFIXES, check_state_dict, open_safetensors, read_json, read_pickle
from .stored import read_layout


COMPUTED = torch.bfloat16
"""What weights in eight bits or fewer become, unless another data type is asked for."""

EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)

_SCALES = (".scale_weight", ".weight_scale")
# Markers and scales of activations, which only kernels in eight bits need.
_IGNORED = ("scaled_fp8", ".scale_input", ".input_scale", ".comfy_quant")
_FORMAT = ".comfy_quant"
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fn_blockwise")
_ONE_SCALE = 1


@dataclass(frozen=True)
class Tensors:
    """Tensors by key, which are read when they are needed.

    Attributes:
        shapes (`Mapping[str, tuple[int, ...]]`): The shapes that they represent; packed ones are stored in others.
        dtypes (`Mapping[str, torch.dtype]`): Their data types.
        read (`Callable[[str], torch.Tensor]`): Gives a tensor, which may share memory with the source.
        is_scaled (`bool`): Whether some are products of weights in eight bits and their scales.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], torch.Tensor]
    is_scaled: bool = False

    @property
    def dtype(self) -> torch.dtype | None:
        """Data type of a model with these weights, which cannot compute in theirs; `None` if it can."""
        packed = any(dtype in EIGHT_BITS or not dtype.is_floating_point for dtype in self.dtypes.values())
        return COMPUTED if self.is_scaled or packed else None

    def select(self, names: Mapping[str, str]) -> Tensors:
        """Return some of the tensors under other keys.

        Args:
            names (`Mapping[str, str]`): The present key of each new one.
        """
        return Tensors(
            {new: self.shapes[old] for new, old in names.items()},
            {new: self.dtypes[old] for new, old in names.items()},
            lambda key: self.read(names[key]),
            self.is_scaled,
        )

    def planned(
        self, plan: Mapping[str, TensorRecipe], wanted: Mapping[str, Sequence[int]], prefix: str = ""
    ) -> Tensors:
        """Return the tensors of a model, made from these.

        Args:
            plan (`Mapping[str, TensorRecipe]`): A recipe for each.
            wanted (`Mapping[str, Sequence[int]]`): The model's shapes; some files have further axes of size one.
            prefix (`str`, *optional*): What the model may have before the keys of the plan.
        """
        plan = {key if key in wanted else f"{prefix}{key}": recipe for key, recipe in plan.items()}
        shapes = {key: recipe.shape for key, recipe in plan.items()}
        shapes |= {
            key: tuple(wanted[key]) for key in shapes.keys() & wanted if _bare(wanted[key]) == _bare(shapes[key])
        }

        def read(key: str) -> torch.Tensor:
            tensor = plan[key].build(self.read)
            return tensor if shapes[key] == plan[key].shape else tensor.reshape(shapes[key])

        dtypes = {key: self.dtypes[recipe.sources[0]] for key, recipe in plan.items()}
        return Tensors(shapes, dtypes, read, self.is_scaled)

    def without_scales(self) -> Tensors:
        """Return the tensors that weights with scales of their own stand for.

        ComfyUI stores `weight` in eight bits beside `scale_weight` (or `weight_scale`), by which it is multiplied.

        Raises:
            ValueError: If a scale has no weight, is not a single number, or the format is another one.
        """
        self._check_format()
        scales = {
            key.removesuffix(end) + ".weight": key for key in self.shapes for end in _SCALES if key.endswith(end)
        }
        if not scales and not any(key.endswith(_IGNORED) for key in self.shapes):
            return self
        alone = [scale for weight, scale in scales.items() if weight not in self.shapes]
        wrong = [scale for scale in scales.values() if _count(self.shapes[scale]) != _ONE_SCALE]
        if alone or wrong:
            reason = "have no weight beside them" if alone else "are not single numbers"
            raise ValueError(f"Scales of weights {reason}: {list_keys(alone or wrong)}.")
        left = [key for key in self.shapes if key not in scales.values() and not key.endswith(_IGNORED)]

        def read(key: str) -> torch.Tensor:
            tensor = self.read(key)
            if key not in scales:
                return tensor
            return (tensor.float() * self.read(scales[key]).float().reshape(())).to(COMPUTED)

        dtypes = {key: COMPUTED if key in scales else self.dtypes[key] for key in left}
        return Tensors({key: self.shapes[key] for key in left}, dtypes, read, is_scaled=True)

    def _check_format(self) -> None:
        for key in self.shapes:
            if key.endswith(_FORMAT):
                found = json.loads(bytes(self.read(key).to(torch.uint8).tolist())).get("format")
                if found not in _FORMATS:
                    raise ValueError(
                        f"`{shorten(key)}` says that the weights are in the format {found!r}, which is not read; "
                        f"{', '.join(_FORMATS[:2])} are. Pass a file in one of these, in GGUF or in 16 bits."
                    )


def _bare(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


@contextmanager
def open_tensors(source: str | Path | Mapping[str, torch.Tensor]) -> Iterator[Tensors]:
    """Open a source of tensors.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            A safetensors file, the index of several or the folder that holds them, a GGUF file, a pickle of tensors
            only, or a state dict.

    Yields:
        [`Tensors`]: scales of weights in eight bits are applied; weights of GGUF files are packed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of these, or broken.
        OSError: If it cannot be read.
    """
    if isinstance(source, Mapping):
        check_state_dict(source)
        yield tensors_of_mapping(source).without_scales()
    elif is_gguf(source):
        yield tensors_of_mapping(read_gguf(source))
    elif Path(source).is_dir() or Path(source).name.endswith(".index.json"):
        with _open_several(source) as tensors:
            yield tensors.without_scales()
    elif Path(source).suffix in (*SAFETENSORS_SUFFIXES, ".gguf"):
        with open_safetensors(source) as reader:
            yield tensors_of(reader).without_scales()
    else:
        yield tensors_of_mapping(_unwrapped(read_pickle(source))).without_scales()


def _unwrapped(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = weights.get("state_dict")
    return inner if isinstance(inner, Mapping) else weights


def tensors_of_mapping(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the tensors of a state dict, which may be packed ones of a GGUF file."""
    nested = [key for key, weight in weights.items() if isinstance(weight, Mapping)]
    if nested:
        raise ValueError(f"A state dict holds others: {list_keys(nested)}. Pass the one that holds the weights.")
    shapes = {key: logical_shape(weight) for key, weight in weights.items()}
    return Tensors(shapes, {key: weight.dtype for key, weight in weights.items()}, weights.__getitem__)


def tensors_of(reader: Any) -> Tensors:
    """Return the tensors of an open safetensors file, which must stay open while they are read."""
    slices = {key: reader.get_slice(key) for key in reader.keys()}
    dtypes = {key: DTYPES[piece.get_dtype()] for key, piece in slices.items()}
    return Tensors({key: tuple(piece.get_shape()) for key, piece in slices.items()}, dtypes, reader.get_tensor)


@contextmanager
def _open_several(source: str | Path) -> Iterator[Tensors]:
    stored = read_layout(source)

    def read(key: str) -> torch.Tensor:
        with open_safetensors(stored[key].path) as reader:
            return reader.get_tensor(key)

    yield Tensors(
        {key: tensor.shape for key, tensor in stored.items()},
        {key: tensor.dtype for key, tensor in stored.items()},
        read,
    )


def fill_from(
    model: Any,
    tensors: Tensors,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    leave: frozenset[str] = frozenset(),
) -> Any:
    """Give a model copies of tensors that are read one at a time; packed ones are unpacked.

    Args:
        model (`nn.Module`): The model, whose parameters may be on the meta device.
        tensors ([`Tensors`]): One for each of its keys.
        dtype (`torch.dtype`, *optional*):
            Data type of the copies; by default that of each tensor, or bfloat16 if some are in eight bits or fewer.
        device (`str` or `torch.device`, *optional*): Their device; that of each tensor by default.
        leave (`frozenset[str]`): Keys of weights that are filled otherwise.

    Returns:
        `nn.Module`: the model, in eval mode.

    Raises:
        ValueError: If tensors are missing, surplus, of another shape, or not floating-point numbers.
    """
    check_shapes(model, tensors.shapes)
    weights, dtype = {}, dtype or tensors.dtype
    for key in tensors.shapes.keys() - leave:
        tensor = dequantised(tensors.read(key), dtype)
        check_floating({key: tensor.dtype})
        weights[key] = tensor.to(device=device, dtype=dtype, copy=True, memory_format=torch.contiguous_format)
    model.load_state_dict(weights, assign=True, strict=False)
    return model.eval()


def config_beside(source: object, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Return the `config.json` in the folder of a file if it describes one of these models, else nothing.

    Args:
        source (`object`): The file, the folder, or something that is not a path.
        kinds (`tuple[str, ...]`): Values of `model_type` or `_class_name` that are meant.
    """
    if not isinstance(source, str | Path):
        return {}
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    if not (folder / "config.json").is_file():
        return {}
    config = read_json(folder / "config.json")
    return config if {config.get("model_type"), config.get("_class_name")} & set(kinds) else {}
