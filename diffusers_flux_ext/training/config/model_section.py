"""The section of the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ..memory.plan import read_budget
from ..trained import INPUT_CHANNELS
from .sample_sections import Section


class ModelSection(Section):
    """The model to start from.

    Args:
        path (`str`): A repository, a folder in diffusers' layout, or `"tiny"`, the embedded model.
        revision (`str`, *optional*): Revision of a repository.
        dtype (`str`):
            Data type of the model and of conditions' modules. LoRAs are float32; other weights that are trained in 16
            bits need `optimizer.rounding`.
        storage (`str`, *optional*):
            How the frozen transformer's blocks are kept in memory: `"fp8"`, 8 bits with a scale for each row, or
            `"nf4"`, 4 bits by bitsandbytes. It computes in `dtype` all the same. Not with `train.weights`.
        device (`str`): `"auto"` takes the best one.
        guidance (`float` or two, *optional*):
            The embedded guidance in training, or the range it is drawn from; ignored by models without one.
        gradient_checkpointing (`bool` or `int`):
            Whether blocks run again in the backward pass, which saves memory; a number for one of so many blocks.
        offload_activations (`bool`):
            Whether the inputs of blocks that run again wait in host memory until then. Needs `gradient_checkpointing`.
        resident (`str`, *optional*):
            Memory such as `"4GB"` for weights of the frozen transformer's blocks that stay on the device; the others
            are streamed from host memory whenever they run, two at a time. `"0GB"` streams all blocks. Needs
            `gradient_checkpointing`; streamed blocks run again whatever it says.
        stream_folder (`str`, *optional*):
            Folder that blocks beyond `resident` are written to once and read from, in place of host memory.
        compile (`bool`):
            Whether the blocks are compiled by `torch.compile`. Not with `resident`, nor with the `storage` `"nf4"`.
        compile_graphs (`int`):
            How many graphs are compiled at most; inputs that would need another one run uncompiled, with a warning.
        widen (`str` or `int`, *optional*):
            Further input channels of `"control"`, `"fill"` or `"flex"` models, or their whole number; they begin as
            zeros.
    """

    path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    storage: Literal["fp8", "nf4"] | None = None
    device: str = "auto"
    guidance: float | tuple[float, float] | None = 1.0
    gradient_checkpointing: bool | Annotated[int, Field(ge=1)] = False
    offload_activations: bool = False
    resident: str | None = None
    stream_folder: str | None = None
    compile: bool = False
    compile_graphs: int = Field(default=32, ge=1)
    widen: str | int | None = None

    @field_validator("widen")
    @classmethod
    def _known_width(cls, value: str | int | None) -> str | int | None:
        if isinstance(value, str) and value not in INPUT_CHANNELS:
            raise ValueError(f"got {value!r}; expected one of {sorted(INPUT_CHANNELS)}, or a number of channels")
        return value

    @field_validator("resident")
    @classmethod
    def _is_amount(cls, value: str | None) -> str | None:
        if value is not None:
            read_budget(value, least=0)
        return value

    @model_validator(mode="after")
    def _streams(self) -> ModelSection:
        if self.stream_folder is not None and self.resident is None:
            raise ValueError("got `stream_folder` without `resident`, which says how much is not streamed")
        if self.resident is not None and self.storage == "nf4":
            raise ValueError(
                "got `resident` with `storage` 'nf4', whose tables do not move with the weights; take `fp8`, or leave "
                "`storage` out"
            )
        for name in ("resident", "offload_activations"):
            if getattr(self, name) not in (None, False) and not self.gradient_checkpointing:
                raise ValueError(
                    f"got `{name}` without `gradient_checkpointing`, but it acts on blocks that run again in the "
                    f"backward pass; set `gradient_checkpointing: true`"
                )
        return self

    @model_validator(mode="after")
    def _compiles(self) -> ModelSection:
        if self.compile and self.resident is not None:
            raise ValueError(
                "got `compile` with `resident`, whose hooks bring the weights of a block while it runs; leave one of "
                "them out"
            )
        if self.compile and self.storage == "nf4":
            raise ValueError(
                "got `compile` with `storage` 'nf4', whose layers of bitsandbytes have not been compiled; take `fp8`, "
                "or leave `compile` out"
            )
        return self

    @property
    def resident_bytes(self) -> int | None:
        """Bytes of blocks that stay on the device, if the others are streamed."""
        return None if self.resident is None else read_budget(self.resident, least=0)
