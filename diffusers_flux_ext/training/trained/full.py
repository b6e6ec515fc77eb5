"""Training the weights of the transformer or of a text encoder themselves, all of them or some blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor, nn

from ...checkpoints.layouts import LAYOUTS, convert_transformer_state_dict
from ...checkpoints.writing import save_tensors
from ...lora.keys import Component
from ...lora.loading.plain import plain_names, plain_weights
from .export import export_module
from .info import ExportInfo
from .modules import check_floats, whole_weights
from .names import select
from .presets import LORA_PRESETS
from .protocol import is_writer, load_into, mark_trainable, state_of


class TrainedWeights:
    """Weights of a model itself; see [`Trained`].

    Their data type stays as it is. In bfloat16 small updates are lost unless the optimizer rounds stochastically or
    keeps float32 copies.

    Args:
        model (`torch.nn.Module`):
            The transformer or a text encoder. Adapters in it stay, frozen, and are not exported.
        patterns (`Sequence[str]`, defaults to `("*",)`):
            Which parameters, or what contains them, for example `["transformer_blocks.0-5"]`; see [`select`].
        component (`str`, defaults to `"transformer"`): `"transformer"`, `"text_encoder"` or `"text_encoder_2"`.
        layouts (`Sequence[str]`, defaults to `("diffusers",)`):
            What is exported of a transformer: `"diffusers"` is a folder, `"bfl"` and `"diffsynth"` are single files.

    Raises:
        ValueError: if a pattern matches nothing, weights are quantised, or a layout is unknown.
        TypeError: if it is a VAE, which the loss does not reach.
    """

    def __init__(
        self,
        model: Any,
        patterns: Sequence[str] = ("*",),
        component: Component = "transformer",
        layouts: Sequence[str] = ("diffusers",),
    ) -> None:
        _check(model, component, layouts)
        self.model, self.component, self.layouts = model, component, tuple(layouts)
        names, own = plain_names(model), {name for name, _ in model.named_parameters()}
        trainable = [name for name, present in names.items() if present in own]
        self.names = select(trainable, patterns, "patterns", f"parameter of {type(model).__name__}")
        # All of them: those that are frozen are exported, too.
        check_floats({name: model.get_parameter(names[name]) for name in trainable}, component)
        mark_trainable([model], self)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """See [`Trained.named_parameters`]: `"transformer.proj_out.weight"`, for example."""
        present = plain_names(self.model)
        return {f"{self.component}.{name}": self.model.get_parameter(present[name]) for name in self.names}

    def state(self) -> dict[str, Tensor]:
        """See [`Trained.state`]."""
        return state_of(self.named_parameters())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See [`Trained.load`]."""
        load_into(self.named_parameters(), state)

    def train(self, mode: bool = True) -> None:
        """See [`Trained.train`]: the text encoders have dropout, the transformer has none."""
        self.model.train(mode)

    def keep_base(self) -> Callable[[], AbstractContextManager[None]]:
        """Copy the present values of what is trained, for predictions of the base.

        Returns:
            `Callable`: makes a context in which the model has those values, for passes without gradients.
        """
        base = {name: parameter.detach().clone() for name, parameter in self.named_parameters().items()}

        @contextmanager
        def applied() -> Iterator[None]:
            parameters = self.named_parameters()
            present = {name: parameter.data for name, parameter in parameters.items()}
            # Storages change places, so that a graph that waits for its backward pass finds its own weights again.
            for name, parameter in parameters.items():
                parameter.data = base[name].to(parameter.device)
            try:
                yield
            finally:
                for name, parameter in parameters.items():
                    parameter.data = present[name]

        return applied

    def export(
        self, folder: str | os.PathLike[str], info: ExportInfo, average: Mapping[str, Tensor] | None = None
    ) -> list[Path]:
        """Write the whole model, trained and frozen weights, in every layout; see [`Trained.export`]."""
        weights = whole_weights(plain_weights(self.model), f"{self.component}.", self, average)
        metadata = info.metadata(kind="full", targets=", ".join(self._trained_parts()))
        written: list[Path] = []
        for layout in self.layouts:
            if layout == "diffusers":
                written += export_module(self.model, folder, self.component, metadata, weights)
            else:
                written.append(Path(folder) / f"{self.component}_{layout}.safetensors")
                if is_writer():
                    _save_single(weights, written[-1], layout, metadata)
        return written

    def _trained_parts(self) -> list[str]:
        """Return the blocks and other parts that are trained, shortly."""
        if len(self.names) == len({name for name, _ in self.model.named_parameters()}):
            return ["all"]
        return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in self.names))


def _save_single(weights: Mapping[str, Tensor], path: Path, layout: Any, metadata: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    converted = convert_transformer_state_dict(weights, layout)
    save_tensors({key: tensor.contiguous() for key, tensor in converted.items()}, path, metadata)


def _check(model: Any, component: str, layouts: Sequence[str]) -> None:
    if isinstance(model, AutoencoderKL):
        raise TypeError(
            "A VAE cannot be trained here: the loss compares latents, so no gradient reaches the decoder, and another "
            "encoder would not fit the transformer. Train the transformer or a text encoder."
        )
    if component not in LORA_PRESETS:
        raise ValueError(f"`component` is {component!r}; expected one of {list(LORA_PRESETS)}.")
    known = LAYOUTS if component == "transformer" else ("diffusers",)
    wrong = [layout for layout in layouts if layout not in known]
    if wrong or not layouts:
        raise ValueError(f"`layouts` of `{component}` is {list(layouts)}; expected some of {list(known)}.")
