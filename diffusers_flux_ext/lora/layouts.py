"""The layouts that LoRAs are written in, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import LoRAError
from .updates import Bias, LoRA, Update


@dataclass(frozen=True)
class LoRALayout:
    """A layout that LoRAs are written in.

    Attributes:
        name (`str`): Its name.
        namespace (`str`): How it names the transformer's layers.
        prefixes (`Mapping[str, str]`):
            What it puts before the layers of each component; missing components are not supported.
        down, up (`str`): Suffixes of the factors.
        alpha (`str`): Whether alpha is written `"always"`, for all layers or none (`"together"`), where it is not the
            rank (`"needed"`) or `"never"`; then the scale goes into the factors.
        kinds (`tuple[type[Update], ...]`): The kinds of updates that its readers apply; others become a LoRA.
        bias, magnitude, norm (`str`, *optional*):
            Suffixes of the bias of a LoRA, of DoRA's magnitudes, and of a replaced norm.
    """

    name: str
    namespace: str
    prefixes: Mapping[str, str]
    down: str
    up: str
    alpha: str
    kinds: tuple[type[Update], ...] = (LoRA, Bias)
    bias: str | None = None
    magnitude: str | None = None
    norm: str | None = None

    @property
    def is_flat(self) -> bool:
        """Whether layers are spelled with underscores for dots."""
        return self.prefixes["transformer"].endswith("_")


_EVERY_KIND = (Update,)
_PEFT, _KOHYA = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
_COMPONENTS = ("transformer", "text_encoder", "text_encoder_2")


def _prefixes(*prefixes: str) -> dict[str, str]:
    return dict(zip(_COMPONENTS, prefixes))


LORA_LAYOUTS: dict[str, LoRALayout] = {
    layout.name: layout
    for layout in (
        LoRALayout(
            "diffusers", "diffusers", _prefixes(*(f"{name}." for name in _COMPONENTS)), *_PEFT, "together",
            bias=".lora_B.bias", magnitude=".lora_magnitude_vector", norm=".weight",
        ),
        LoRALayout(
            "kohya", "bfl", _prefixes("lora_unet_", "lora_te1_", "lora_te3_"), *_KOHYA, "always", _EVERY_KIND,
            magnitude=".dora_scale", norm=".set_weight",
        ),
        LoRALayout(
            "bfl", "bfl",
            _prefixes(
                "diffusion_model.", "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."
            ),
            *_PEFT, "needed", _EVERY_KIND, bias=".lora_B.bias", magnitude=".dora_scale", norm=".scale",
        ),
        LoRALayout("diffsynth", "diffsynth", _prefixes(""), *_PEFT, "never"),
        LoRALayout(
            "onetrainer", "diffusers", _prefixes("lora_transformer_", "lora_te1_", "lora_te2_"), *_KOHYA, "always",
            _EVERY_KIND, magnitude=".dora_scale", norm=".set_weight",
        ),
        # x-flux' own: attention, and the second layer of single blocks.
        LoRALayout("xlabs", "xlabs", _prefixes(""), ".down.weight", ".up.weight", "never"),
    )
}  # fmt: skip
_ALIASES = {"comfyui": "bfl", "comfy": "bfl", "peft": "diffusers", "diffusers_peft": "diffusers", "bfl_alpha": "bfl",
            "diffsynth_nodefault": "diffsynth", "onetrainer_legacy": "onetrainer"}  # fmt: skip


def lora_layout(name: str) -> LoRALayout:
    """Return the layout with a given name.

    Raises:
        LoRAError: If there is none; the message lists them.
    """
    found = LORA_LAYOUTS.get(_ALIASES.get(name, name)) if isinstance(name, str) else None
    if found is None:
        raise LoRAError(f"`to` is {name!r}; LoRAs are written as one of {sorted(LORA_LAYOUTS)}.")
    return found
