"""LoRA-Encoder: the effect of LoRAs, expressed as text tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...canvas import Canvas
from ...condition import Encoders, FluxCondition
from ...demand import Demand
from ...denoise import DenoisingStep
from ...inputs.checks import check_flag, shown
from ...inputs.numbers import read_numbers
from ...inputs.text import check_text_width, text_group
from ...lora.errors import LoRAError
from ...lora.files import LoRASource
from ...sequence import Contribution
from .inputs import lora_pairs, read_lora_layers
from .model import FluxLoRAEncoder


@dataclass(frozen=True, eq=False)
class LoRAEmbedding(FluxCondition):
    """LoRAs as text tokens ([LoRA-Encoder](https://modelscope.cn/models/DiffSynth-Studio/LoRA-Encoder-FLUX.1-Dev)).

    The encoder reads the matrices of a LoRA; loading the LoRA into the transformer is independent of that.
    Each LoRA becomes a text group on the conditional branch, of one token in the released model.

    Args:
        encoder (`FluxLoRAEncoder`): On the pipeline's device and of its dtype, or offloaded.
        loras (a LoRA, a list of them, or one such list per prompt):
            Files, folders with one, or state dicts, in any format that [`convert_lora`] reads; scales are taken
            into account. A layer that a LoRA leaves out counts as an update of zero. Lists per prompt have equal
            lengths.
        scale (`float` or `Sequence[float]`, defaults to 1.0):
            Factor of the tokens, or one per LoRA. 0 leaves the LoRA out.
        strict (`bool`, defaults to `True`):
            Whether parts of a LoRA that the encoder was not trained to read (text encoders, embedders, the last
            layer, DoRA's magnitudes) are errors; otherwise they are left out with a warning.

    Raises:
        TypeError: if `encoder`, a LoRA or a scale is something else.
        ValueError: if there is no LoRA, lengths differ, or a scale is not finite.
    """

    encoder: FluxLoRAEncoder
    loras: LoRASource | Sequence[LoRASource] | Sequence[Sequence[LoRASource]]
    scale: float | Sequence[float] = 1.0
    strict: bool = True

    shared = ("*/*/*",)

    def __post_init__(self) -> None:
        if not isinstance(self.encoder, FluxLoRAEncoder):
            raise TypeError(
                f"`encoder` of LoRAEmbedding is a {type(self.encoder).__name__}; expected a `FluxLoRAEncoder`, for "
                f"example from `FluxLoRAEncoder.from_single_file('model.safetensors')`."
            )
        lengths = {len(loras) for loras in self._per_prompt()}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(
                f"`loras` of LoRAEmbedding has lists of the lengths {sorted(lengths)}; give at least one LoRA, and as "
                f"many for each prompt."
            )
        check_flag("`strict` of LoRAEmbedding", self.strict)
        self._scales()

    def demand(self, prompt_tokens: int) -> Demand:
        """Count the tokens of every LoRA."""
        return Demand(appended_tokens=len(self._scales()) * self.encoder.config.num_special_embeds)

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Read and convert the LoRAs. Their matrices stay on the CPU and in their dtype.

        Args:
            pipe (`Encoders`): Gives the transformer, whose text must be as wide as the tokens.
            canvas (`Canvas`): Gives the batch.

        Returns:
            `dict[str, torch.Tensor]`: `"<prompt>/<lora>/<layer>.lora_A.weight"` and `lora_B`; and `"samples"`, the
            prompt whose LoRAs each sample has.

        Raises:
            LoRAError: if a LoRA cannot be read, or has parts that the encoder cannot.
            ValueError: if the encoder does not fit the transformer, or the lists do not fit the batch.
        """
        check_text_width(type(self).__name__, self.encoder.config.embed_dim, pipe.transformer)
        prompts = self._per_prompt()
        encoded = {"samples": canvas.per_sample(torch.arange(len(prompts)), "`loras` of LoRAEmbedding")}
        for prompt, loras in enumerate(prompts):
            for index, (lora, scale) in enumerate(zip(loras, self._scales())):
                if scale:
                    weights = self._read(lora)
                    encoded |= {f"{prompt}/{index}/{key}": weight for key, weight in weights.items()}
        return encoded

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return a text group `lora_<index>` for every LoRA; none on the unconditional branch, as in the reference."""
        if step.branch == "uncond":
            return Contribution()
        groups, prompts = [], range(int(encoded["samples"].max()) + 1)
        used = {int(name.split("/")[1]) for name in encoded if "/" in name}
        for index, scale in enumerate(self._scales(None if self.loras is not None else 1 + max(used, default=-1))):
            if index in used:
                tokens = torch.cat([self.encoder(lora_pairs(encoded, f"{prompt}/{index}/")) for prompt in prompts])
                samples = encoded["samples"].to(tokens.device)
                groups.append(text_group(f"lora_{index}", scale * tokens[samples], step, in_prompt=True))
        return Contribution(text=groups)

    def _read(self, lora: LoRASource) -> dict[str, torch.Tensor]:
        try:
            return read_lora_layers(self.encoder, lora, self.strict)
        except LoRAError as error:
            error.args = (f"`loras` of LoRAEmbedding: {error}",)
            raise

    def _per_prompt(self) -> list[list[Any]]:
        given: Any = list(self.loras) if isinstance(self.loras, (list, tuple)) else [self.loras]
        nested = bool(given) and all(isinstance(lora, (list, tuple)) for lora in given)
        prompts = [list(loras) for loras in given] if nested else [given]
        for lora in (lora for loras in prompts for lora in loras):
            if not isinstance(lora, (str, os.PathLike, Mapping)):
                raise TypeError(
                    f"`loras` of LoRAEmbedding holds {shown(lora)}; expected paths or state dicts, a list of them, or "
                    f"one list per prompt."
                )
        return prompts

    def _scales(self, count: int | None = None) -> list[float]:
        """Return the scale of each LoRA; `count` is their number where the LoRAs are not at hand, as in training."""
        if count is None:
            count = len(self._per_prompt()[0])
        return read_numbers("`scale` of LoRAEmbedding", self.scale, count, "for each LoRA")
