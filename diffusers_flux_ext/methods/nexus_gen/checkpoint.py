"""The published files of Nexus-Gen V2: a decoder's transformer with its adapter or merger, and the language model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch

from ...checkpoints.messages import list_keys, naming
from ...checkpoints.modules import fill_module, read_tensors
from ...checkpoints.sizes import build_empty, check_dimensions


ModelT = TypeVar("ModelT", bound="DecoderPartMixin")
NexusGenDecoder = Literal["generation", "editing"]
Source = str | Path | Mapping[str, torch.Tensor]
TRANSFORMER = "pipe.dit."
MODULATION = "final_norm_out.linear."


@dataclass(frozen=True)
class DecoderPart:
    """The part of a decoder's file beside its transformer.

    Attributes:
        decoder (`str`):
            The decoder it belongs to.
        prefix (`str`):
            Prefix of its keys in the file.
        kept (`str`):
            Prefix of the model's own keys.
        sized (`tuple[str, ...]`):
            Keys of matrices that determine its sizes, as the model spells them.
    """

    decoder: NexusGenDecoder
    prefix: str
    kept: str
    sized: tuple[str, ...]

    def spell(self, key: str) -> str:
        """Return the model's own key."""
        return self.kept + key.removeprefix(self.prefix)


ADAPTER = DecoderPart("generation", "adapter.", "adapter.", ("adapter.0.weight",))
MERGER = DecoderPart(
    "editing",
    "embedding_merger.",
    "",
    (
        "layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.k_proj.weight",
        "layers.0.mlp.gate_proj.weight",
        "projector.1.weight",
        "projector.4.weight",
    ),
)
PARTS = (ADAPTER, MERGER)


def read_part(source: Source, part: DecoderPart) -> dict[str, torch.Tensor]:
    """Return the adapter or merger of a decoder's file, with the model's own keys.

    Args:
        source (`str`, `Path` or `Mapping`): The file or its state dict; or those of the part alone.
        part (`DecoderPart`): Which one.

    Returns:
        `dict[str, torch.Tensor]`

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold this part.
    """
    tensors = read_tensors(source)
    chosen = {part.spell(key): weight for key, weight in tensors.items() if key.startswith(part.prefix)}
    if not chosen:
        # A state dict of the part itself; surplus keys are named by the model.
        chosen = tensors
    missing = [key for key in part.sized if key not in chosen]
    if missing:
        raise ValueError(
            f"This holds nothing of Nexus-Gen's {part.decoder} decoder beside its transformer: {list_keys(missing)} "
            f"are missing among {list_keys(sorted(tensors))}. The published file is "
            f"{'`generation_decoder.bin`' if part is ADAPTER else '`edit_decoder.bin`'}."
        )
    check_dimensions({key: chosen[key].shape for key in part.sized}, dict.fromkeys(part.sized, 2))
    return chosen


def split_decoder(source: Source) -> tuple[dict[str, torch.Tensor], DecoderPart, dict[str, torch.Tensor]]:
    """Split a decoder's file into its models. Tensors share memory with the file.

    Args:
        source (`str`, `Path` or `Mapping`): `generation_decoder.bin`, `edit_decoder.bin` or the state dict of one.

    Returns:
        `tuple`: the transformer in DiffSynth-Studio's layout, what stands beside it, and that in the model's own keys.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    tensors = read_tensors(source)
    parts = [part for part in PARTS if any(key.startswith(part.prefix) for key in tensors)]
    known = tuple(part.prefix for part in parts) + (TRANSFORMER,)
    other = sorted(key for key in tensors if not key.startswith(known))
    transformer = {key: weight for key, weight in tensors.items() if key.startswith(TRANSFORMER)}
    if len(parts) != 1 or not transformer or other:
        raise ValueError(
            f"A decoder of Nexus-Gen holds `{TRANSFORMER}*` and either `{ADAPTER.prefix}*` or `{MERGER.prefix}*`, but "
            f"this has {list_keys(other or sorted(tensors))}. The published files are `generation_decoder.bin` and "
            f"`edit_decoder.bin`."
        )
    bare = {key.removeprefix(TRANSFORMER): weight for key, weight in transformer.items()}
    return {key: _swapped(key, weight) for key, weight in bare.items()}, parts[0], read_part(tensors, parts[0])


def _swapped(key: str, weight: torch.Tensor) -> torch.Tensor:
    # These files have scale and shift of the last norm in diffusers' order, unlike DiffSynth-Studio's current layout.
    halves = key.startswith(MODULATION) and weight.ndim
    return torch.cat(weight.chunk(2)[::-1]) if halves else weight


class DecoderPartMixin:
    """Gives the adapter and the merger `from_single_file`."""

    part: ClassVar[DecoderPart]

    @classmethod
    @abstractmethod
    def infer_config(cls, weights: Mapping[str, torch.Tensor], **overrides: Any) -> dict[str, Any]:
        """Return the constructor's arguments.

        Args:
            weights (`Mapping[str, torch.Tensor]`): The model's weights.
            overrides: Arguments that cannot be read from them.

        Returns:
            `dict[str, Any]`
        """

    @classmethod
    def from_single_file(
        cls: type[ModelT],
        source: Source,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **overrides: Any,
    ) -> ModelT:
        """Make a model from the published file of its decoder; the sizes follow from the shapes.

        Args:
            source (`str`, `Path` or `Mapping`):
                Path of `generation_decoder.bin` or `edit_decoder.bin` (pickles of tensors) or of a safetensors file,
                or a state dict. The decoder's transformer in it is skipped.
            dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
            torch_dtype (`torch.dtype`, *optional*): Older name of `dtype`.
            device (`str` or `torch.device`, *optional*): Device of the model; CPU by default.
            overrides: Arguments of the constructor that cannot be read from the weights, `mrope_section` of the
            merger.

        Returns:
            the model, in eval mode.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else.
        """
        with naming(source):
            weights = read_part(source, cls.part)
            model: Any = build_empty(cls, cls.infer_config(weights, **overrides))
            return fill_module(model, weights, torch_dtype if dtype is None else dtype, device)
