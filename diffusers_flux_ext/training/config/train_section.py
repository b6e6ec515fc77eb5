"""The section of what is trained, and what lies under it."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from ...lora.keys import Component
from ..memory.plan import read_budget
from ..trained import LoRAOptions
from .sample_sections import Section


class FusionSection(Section):
    """LoRA-Fusion's gates over LoRAs that stay as they are.

    Args:
        loras (`list[str]`): Files of the LoRAs, in any layout.
        path (`str`, *optional*): Gates to start from, a folder or the published file; new ones by default.
    """

    loras: list[str] = Field(min_length=1)
    path: str | None = None


class BaseLoRASection(Section):
    """A LoRA that acts in training and stays as it is; the result is trained on top of it, without it.

    Args:
        path (`str`): The file, in any layout.
        weight (`float`): How strongly it acts.
        fused (`bool`):
            Whether it is added to the weights, rounded once to their data type, instead of being kept beside them in
            float32. That is faster, and it may be of any kind.
    """

    path: str
    weight: float = 1.0
    fused: bool = False


class SliderSection(Section):
    """A slider: the LoRA acts on each sample with a strength of its own.

    Args:
        column (`str`): The column of the strengths, numbers from -1 to 1.
    """

    column: str = "strength"


class TrainSection(Section):
    """What is trained, besides modules of conditions with `train: true`.

    Args:
        lora (`LoRAOptions`, *optional*): A LoRA of the transformer.
        text_encoder_lora (`LoRAOptions`, *optional*): A LoRA of CLIP.
        text_encoder_2_lora (`LoRAOptions`, *optional*): A LoRA of T5.
        weights (`list[str]`, *optional*): Weights of the transformer itself, by patterns; `["*"]` is all.
        fusion (`FusionSection`, *optional*): LoRA-Fusion's gates, in float32.
        init_from (`str`, *optional*): A LoRA to start from.
        base_loras (`list[BaseLoRASection]`, *optional*): LoRAs of the transformer that lie under `lora`.
        slider (`SliderSection`, *optional*): Makes `lora` a slider.
        memory (`str`, *optional*):
            Memory of the GPU, such as `"12GB"`: storage, checkpointing, batches and cache are chosen so that the run
            fits, with as many samples in an update as before.
    """

    lora: LoRAOptions | None = None
    text_encoder_lora: LoRAOptions | None = None
    text_encoder_2_lora: LoRAOptions | None = None
    weights: list[str] | None = None
    fusion: FusionSection | None = None
    init_from: str | None = None
    base_loras: list[BaseLoRASection] | None = None
    slider: SliderSection | None = None
    memory: str | None = None

    @field_validator("memory")
    @classmethod
    def _is_budget(cls, value: str | None) -> str | None:
        if value is not None:
            read_budget(value)
        return value

    @property
    def loras(self) -> dict[Component, LoRAOptions]:
        """Options of LoRAs by model."""
        given: dict[Component, LoRAOptions | None] = {
            "transformer": self.lora,
            "text_encoder": self.text_encoder_lora,
            "text_encoder_2": self.text_encoder_2_lora,
        }
        return {name: options for name, options in given.items() if options is not None}

    @property
    def is_plain(self) -> bool:
        """Whether a LoRA of the transformer, of the kind `"lora"`, is all that is trained here."""
        loras = self.loras
        return loras.keys() == {"transformer"} and loras["transformer"].kind == "lora"

    @model_validator(mode="after")
    def _fits(self) -> TrainSection:
        if self.lora is not None and self.weights is not None:
            raise ValueError("got `lora` and `weights`; a LoRA is trained on frozen weights, so give one of them")
        if self.fusion is not None and (self.loras or self.weights is not None):
            raise ValueError(
                "got `fusion` with LoRAs or `weights` that are trained; gates are trained on what they weigh, so "
                "train one after the other"
            )
        if self.init_from is not None and not self.loras:
            raise ValueError("got `init_from` without `lora`, `text_encoder_lora` or `text_encoder_2_lora`")
        if self.base_loras and self.lora is None:
            raise ValueError("got `base_loras` without `lora`, which is trained on top of them")
        if self.slider is not None and (
            self.loras.keys() != {"transformer"} or self.loras["transformer"].kind != "lora"
        ):
            raise ValueError("got `slider`, which needs `lora` of the kind 'lora', and no LoRA of a text encoder")
        return self
