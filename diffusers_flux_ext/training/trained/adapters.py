"""The adapters of one model: PEFT's layers under one name, in float32 on weights of any data type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft import LoKrConfig, LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ...lora.keys import Component
from ...lora.loading.load import delete_adapter, tuned_layers
from ...lora.updates import Update, update_of
from .checks import check_biases, check_model, check_norms, check_shapes
from .options import LoRAOptions


# PEFT's names of a layer's parts, without the adapter's name, and those of an update.
PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "bias",
    "lora_magnitude_vector.weight": "magnitude",
}


class Adapter:
    """The trained layers of one model.

    Args:
        model (`torch.nn.Module`): The model; PEFT's layers are put into it.
        component (`str`): Which it is: `"transformer"`, `"text_encoder"` or `"text_encoder_2"`.
        name (`str`): PEFT's name of the adapter.
        options (`LoRAOptions`): Which layers, and how.

    Raises:
        ValueError: if no layer is matched, the name is taken, or the model cannot be trained.
    """

    def __init__(self, model: nn.Module, component: Component, name: str, options: LoRAOptions) -> None:
        self.model, self.component, self.name, self.options = model, component, name, options
        self.sizes = options.layers(model, component)
        # The layer whose `down` each tied layer uses; filled by `tie`.
        self.owners: dict[str, str] = {}
        check_model(model, component, name, options)
        if options.bias:
            check_biases(model, self.sizes)
        if options.kind == "dora":
            check_norms(model, component, self.sizes)
        if options.kind == "lokr":
            check_shapes(model, component, self.sizes)
        active = list(dict.fromkeys(n for layer in tuned_layers(model) for n in layer.active_adapters))
        try:
            inject_adapter_in_model(_config(self.sizes, options), model, name)
        except Exception:
            delete_adapter(model, name)
            raise
        model._hf_peft_config_loaded = True  # type: ignore[assignment]
        for layer in tuned_layers(model):
            layer.set_adapter([each for each in (*active, name) if each in layer.r])
        for _, _, parameter in self.parts():
            # PEFT gives them the data type of the layer, in which small updates are lost.
            parameter.data = parameter.data.float()

    def parts(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """Return every parameter with its layer and its name there, without the adapter's; tied ones once."""
        for path in self.sizes:
            for part, parameter in self.parts_of(path):
                if part != "lora_A.weight" or self.owners.get(path, path) == path:
                    yield path, part, parameter

    def parts_of(self, path: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the parameters of a layer by their names there, tied ones included."""
        for key, parameter in self.model.get_submodule(path).named_parameters():
            names = key.split(".")
            if names[0] != "base_layer" and len(names) > 1 and names[1] == self.name:
                yield ".".join([names[0], *names[2:]]), parameter

    def spell(self, path: str, part: str) -> str:
        """Return the name of a parameter in checkpoints; tied ones have that of their owner."""
        owner = self.owners.get(path, path) if part == "lora_A.weight" else path
        return f"{self.component}.{owner}.{part}"

    def scale(self, path: str) -> float:
        """Return the factor of a layer's product."""
        layer: Any = self.model.get_submodule(path)
        return float(layer.scaling[self.name])

    def updates(self, values: Mapping[str, Tensor]) -> dict[str, Update]:
        """Return what the adapter does to each layer.

        Args:
            values (`Mapping[str, torch.Tensor]`): Values of all parameters by the names of [`spell`].

        Returns:
            `dict[str, Update]`: by the component and the layer.
        """
        return {
            f"{self.component}.{path}": update_of(
                {PARTS.get(part, part): values[self.spell(path, part)] for part, _ in self.parts_of(path)},
                self.scale(path),
            )
            for path in self.sizes
        }

    def train(self, mode: bool = True) -> None:
        """Turn the adapter's dropout on or off."""
        for path in self.sizes:
            layer: Any = self.model.get_submodule(path)
            if self.options.kind == "lokr":
                # It has no dropout here, and PEFT's layer would draw a number for it at each call.
                layer.eval()
            elif self.name in layer.lora_dropout:
                layer.lora_dropout[self.name].train(mode)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Run the model without this adapter, others as they are; nothing that is frozen or trained changes."""
        before = self._deactivate()
        try:
            yield
        finally:
            for layer, active in before:
                layer._active_adapter = active

    def _deactivate(self) -> list[tuple[Any, Any]]:
        """Leave this adapter out of the active ones, and return what was active in each layer."""
        layers: list[Any] = [self.model.get_submodule(path) for path in self.sizes]
        before = [(layer, layer._active_adapter) for layer in layers]
        for layer in layers:
            # `set_adapter` would also decide which adapters are trained.
            layer._active_adapter = [name for name in layer.active_adapters if name != self.name]
        return before

    def remove(self) -> None:
        """Take the adapter out; the model is then as it was before."""
        self._deactivate()
        delete_adapter(self.model, self.name)


def _config(sizes: Mapping[str, tuple[int, float]], options: LoRAOptions) -> LoraConfig | LoKrConfig:
    (rank, ranks), (alpha, alphas) = (
        _patterns({path: values[index] for path, values in sizes.items()}) for index in (0, 1)
    )
    shared: dict[str, Any] = {
        "r": rank,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        # A list would match the ends of names; a pattern matches whole names.
        "target_modules": "|".join(re.escape(path) for path in sizes),
    }
    if options.kind == "lokr":
        return LoKrConfig(alpha=alpha, decompose_factor=options.factor, **shared)
    return LoraConfig(
        lora_alpha=alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rank_stabilized,
        use_dora=options.kind == "dora",
        lora_bias=options.bias,
        **shared,
    )


def _patterns(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the most frequent value, and patterns for the layers that have another one."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return usual, {f"^{re.escape(path)}": value for path, value in values.items() if value != usual}


def mark(adapters: Sequence[Adapter]) -> None:
    """Let gradients be computed for adapters, and for nothing else of their models."""
    for adapter in adapters:
        adapter.model.requires_grad_(False)
    for adapter in adapters:
        for _, _, parameter in adapter.parts():
            parameter.requires_grad_(True)
