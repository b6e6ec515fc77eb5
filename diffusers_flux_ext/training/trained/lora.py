"""LoRA, DoRA and LoKr on the transformer and the text encoders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ...lora.errors import naming_files
from ...lora.files import LoRASource
from ...lora.keys import Component
from ...lora.layouts import lora_layout
from ...lora.updates import Update
from .adapters import Adapter, mark
from .export import check_format, export_lora
from .info import ExportInfo
from .options import LoRAOptions
from .presets import LORA_PRESETS
from .protocol import chosen_values, is_writer, load_into, state_of
from .start import draw_start, start_from
from .tied import tie


# What `load_lora_weights` looks for in a folder.
_STEMS = {"diffusers": "pytorch_lora_weights"}


class TrainedLoRA:
    """Adapters of one or several models that make one file; see [`add_lora`], which makes it, and [`Trained`].

    Args:
        adapters (`Mapping[str, Adapter]`): The adapters by component.
        formats (`Sequence[str]`, *optional*): Layouts to export; see [`add_lora`].
        dtype (`torch.dtype`, *optional*): Data type of the exported factors; float32 by default.
    """

    def __init__(
        self,
        adapters: Mapping[str, Adapter],
        formats: Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.adapters, self.dtype = dict(adapters), dtype
        self.formats = [lora_layout(name).name for name in formats or ("diffusers",)]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """See [`Trained.named_parameters`]: `"transformer.proj_out.lora_A.weight"`, for example."""
        return {
            adapter.spell(path, part): parameter
            for adapter in self.adapters.values()
            for path, part, parameter in adapter.parts()
        }

    def state(self) -> dict[str, Tensor]:
        """See [`Trained.state`]."""
        return state_of(self.named_parameters())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See [`Trained.load`]."""
        load_into(self.named_parameters(), state)

    def train(self, mode: bool = True) -> None:
        """See [`Trained.train`]."""
        for adapter in self.adapters.values():
            adapter.train(mode)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Run the models without what is trained, for predictions of the base; other adapters stay as they are."""
        with ExitStack() as stack:
            for adapter in self.adapters.values():
                stack.enter_context(adapter.switched_off())
            yield

    def remove(self) -> None:
        """Take the adapters out; the models are then as they were before."""
        for adapter in self.adapters.values():
            adapter.remove()

    def export(
        self, folder: str | os.PathLike[str], info: ExportInfo, average: Mapping[str, Tensor] | None = None
    ) -> list[Path]:
        """Write one file per format: `pytorch_lora_weights.safetensors` for diffusers, else `lora_<format>`.

        With an average, that of each factor is written, which is not the average of their product.
        See [`Trained.export`].
        """
        updates = self._updates(chosen_values(self, average))
        metadata = info.metadata(**self._facts())
        files = {name: Path(folder) / f"{_STEMS.get(name, f'lora_{name}')}.safetensors" for name in self.formats}
        if is_writer():
            Path(folder).mkdir(parents=True, exist_ok=True)
            for name, path in files.items():
                export_lora(updates, path, name, metadata, self.dtype)
        return list(files.values())

    def check_formats(self) -> None:
        """Raise an [`UnsupportedLoRAError`] if a format cannot hold what is trained."""
        values = {name: parameter.detach() for name, parameter in self.named_parameters().items()}
        for name in self.formats:
            check_format(self._updates(values), lora_layout(name))

    def _updates(self, values: Mapping[str, Tensor]) -> dict[str, Update]:
        return {name: u for adapter in self.adapters.values() for name, u in adapter.updates(values).items()}

    def _facts(self) -> dict[str, str]:
        facts: dict[str, str] = {}
        for component, adapter in self.adapters.items():
            start = "" if component == "transformer" else f"{component}."
            own = adapter.options.facts(adapter.sizes.values())
            facts |= {start + name: value for name, value in own.items() if value is not None}
        return facts


def add_lora(
    models: nn.Module | Mapping[Component, nn.Module],
    options: LoRAOptions | Mapping[Component, LoRAOptions] | None = None,
    *,
    name: str = "trained",
    seed: int = 0,
    init_from: LoRASource | None = None,
    formats: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> TrainedLoRA:
    """Put trainable adapters into models, in float32; everything else of the models is frozen.

    The models compute what they computed before until the first update, unless `init_from` is given. Other adapters in
    them stay active, frozen, so that a LoRA can be trained on top of another one.

    Args:
        models (`torch.nn.Module` or `Mapping[str, torch.nn.Module]`):
            The transformer, or models by component: `"transformer"`, `"text_encoder"` (CLIP) and `"text_encoder_2"`
            (T5). They may be of any data type, or quantised by optimum-quanto or bitsandbytes.
        options (`LoRAOptions` or `Mapping[str, LoRAOptions]`, *optional*): For all models, or by component.
        name (`str`, defaults to `"trained"`): PEFT's name of the adapter.
        seed (`int`, defaults to 0): Seed of the first values.
        init_from (`str`, `os.PathLike` or `Mapping[str, torch.Tensor]`, *optional*):
            A LoRA to start from, in any format that [`load_lora`] reads.
        formats (`Sequence[str]`, *optional*):
            Layouts to export; see [`export_lora`]. `["diffusers"]` by default; `["onetrainer"]` for LoKr, which
            diffusers' layout cannot hold as it is.
        dtype (`torch.dtype`, *optional*): Data type of the exported factors; float32 by default.

    Returns:
        `TrainedLoRA`

    Raises:
        ValueError: if a pattern matches nothing, a name is taken, or a model cannot be trained. Nothing has changed
            then.
        LoRAError: if `init_from` cannot be read or does not fit, or a format is unknown or cannot hold what is
            trained.
    """
    parts: dict[Component, nn.Module] = {"transformer": models} if isinstance(models, nn.Module) else dict(models)
    chosen = dict(options) if isinstance(options, Mapping) else dict.fromkeys(parts, options or LoRAOptions())
    if not parts or parts.keys() != chosen.keys() or not parts.keys() <= LORA_PRESETS.keys():
        raise ValueError(
            f"`models` names {sorted(parts)} and `options` {sorted(chosen)}; expected the same ones of "
            f"{list(LORA_PRESETS)}."
        )
    if formats is None and any(each.kind == "lokr" for each in chosen.values()):
        formats = ["onetrainer"]
    made: dict[str, Adapter] = {}
    frozen = {model: [parameter.requires_grad for parameter in model.parameters()] for model in parts.values()}
    try:
        trained = TrainedLoRA(made, formats, dtype)
        for component, model in parts.items():
            made[component] = trained.adapters[component] = _added(model, component, name, chosen[component], seed)
        if init_from is not None:
            with naming_files(init_from):
                start_from(made, init_from)
        trained.check_formats()
    except Exception:
        for adapter in made.values():
            adapter.remove()
        for model, flags in frozen.items():
            for parameter, flag in zip(model.parameters(), flags):
                parameter.requires_grad_(flag)
        raise
    mark(list(made.values()))
    return trained


def _added(model: nn.Module, component: Component, name: str, options: LoRAOptions, seed: int) -> Adapter:
    adapter = Adapter(model, component, name, options)
    try:
        draw_start(adapter, seed)
        if options.tied:
            tie(adapter)
    except Exception:
        adapter.remove()
        raise
    adapter.train()
    return adapter
