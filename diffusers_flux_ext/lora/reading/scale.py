"""The scale of a LoRA's layers: alpha in the file, or PEFT's config in its header or beside it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from ..errors import LoRAError, shortened
from ..keys import LoRAKey
from ..updates import Update
from .patterns import NamePatterns
from .peft_config import divisor, normalized_config, tuner_of


logger = logging.getLogger(__name__)

PEFT_HEADER = "lora_adapter_metadata"
# Beyond these the products of a LoRA overflow float32.
LARGEST, SMALLEST = 1e30, 1e-30
USABLE = f"0, or a number between {SMALLEST:g} and {LARGEST:g}"


class PeftScales:
    """The scales that PEFT's config gives to layers.

    Args:
        configs (`Mapping[str, Mapping[str, Any]]`):
            A config for each component: `"transformer"`, `"text_encoder"`, `"text_encoder_2"`.
        source (`str`): Where the configs come from, for errors.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, Any]], source: str) -> None:
        self.configs = configs
        self.source = source
        self._patterns: dict[tuple[int, str], NamePatterns] = {}

    def scale(self, component: str, module: str, rank: int | None) -> float | None:
        """Return the scale of a layer.

        Args:
            component (`str`): The component that the layer belongs to.
            module (`str`): Its name there, as PEFT saw it.
            rank (`int`, *optional*): The rank that its tensors have; a LoKr of two whole factors has none.

        Returns:
            `float`, or `None` if no config gives its component a scale.

        Raises:
            LoRAError: If the config gives another rank than the tensors.
        """
        config = self.configs.get(component)
        if not config or config.get("lora_alpha") is None:
            return None
        expected = self._lookup(config, "rank_pattern", module, config.get("r"))
        if rank is None:
            # PEFT divides by the rank that it was given, whether the factors have it or not.
            rank = int(expected) if expected and tuner_of(config) == "LOKR" else None
        elif expected is not None and expected != rank:
            raise LoRAError(
                f"The metadata contradicts the tensors: {self.source} gives `{module}` rank {expected}, its tensors "
                f"have rank {rank}. Correct the metadata, or pass `metadata={{}}` to convert without it."
            )
        alpha = float(self._lookup(config, "alpha_pattern", module, config["lora_alpha"]))
        if not math.isfinite(alpha):
            raise LoRAError(f"{self.source} gives `{module}` the alpha {alpha}; expected a finite number.")
        if rank is None:
            return None
        if alpha <= 0 and tuner_of(config) == "ADALORA":
            alpha = float(rank)
        return alpha / divisor(config, rank)

    def value(self, component: str, table: str, module: str) -> Any:
        """Return what a config gives a layer by its patterns, or by its default.

        Args:
            component (`str`): The component that the layer belongs to.
            table (`str`): `"rank_pattern"` or `"alpha_pattern"`.
            module (`str`): The layer's name there.

        Returns:
            The rank or alpha, `None` if the config has none.
        """
        config = self.configs[component]
        return self._lookup(config, table, module, config.get("r" if table == "rank_pattern" else "lora_alpha"))

    def compile(self) -> None:
        """Read all patterns.

        Raises:
            LoRAError: If one is not a pattern for names of layers.
        """
        for config in self.configs.values():
            for table in ("rank_pattern", "alpha_pattern"):
                self._lookup(config, table, "", None)

    def _lookup(self, config: Mapping[str, Any], table: str, module: str, default: Any) -> Any:
        # PEFT's rule: the first pattern that matches the end of the name, unless it is anchored, wins.
        values = config.get(table)
        if not values:
            return default
        key = (id(config), table)
        if key not in self._patterns:
            self._patterns[key] = NamePatterns(values)
        found = self._patterns[key].first(module)
        return default if found is None else values[found]


def read_peft_scales(metadata: Mapping[str, str], adapter_config: Mapping[str, Any] | None) -> PeftScales | None:
    """Read PEFT's config from the header of a file, or from the `adapter_config.json` beside it.

    Args:
        metadata (`Mapping[str, str]`): The header.
        adapter_config (`Mapping[str, Any]`, *optional*): The content of `adapter_config.json`; the header comes first.

    Returns:
        `PeftScales`, or `None` if there is neither.

    Raises:
        LoRAError: If the header's entry is not a JSON object, or has invalid patterns or numbers.
    """
    text = metadata.get(PEFT_HEADER)
    if text is not None:
        try:
            entries = json.loads(text)
        # A number of thousands of digits is a ValueError as well.
        except (ValueError, TypeError, RecursionError) as error:
            raise LoRAError(f"The header's `{PEFT_HEADER}` is not valid JSON: {error}.") from error
        return _scales(_by_component(entries), f"the header's `{PEFT_HEADER}`")
    if adapter_config:
        return _scales({"transformer": adapter_config}, "PEFT's `adapter_config.json`")
    return None


def _scales(configs: Mapping[str, Mapping[str, Any]], source: str) -> PeftScales:
    return _checked({name: normalized_config(config, source) for name, config in configs.items()}, source)


def _by_component(entries: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(entries, dict):
        raise LoRAError(f"The header's `{PEFT_HEADER}` is {type(entries).__name__}; expected a JSON object.")
    configs: dict[str, dict[str, Any]] = {}
    for name, value in entries.items():
        component, _, entry = name.partition(".")
        if not entry:
            component, entry = "transformer", name
        configs.setdefault(component, {})[entry] = value
    return configs


def _checked(configs: dict[str, Any], source: str) -> PeftScales:
    for config in configs.values():
        tables = [config.get(name) or {} for name in ("rank_pattern", "alpha_pattern")]
        numbers = [config.get("r"), config.get("lora_alpha")]
        if not all(isinstance(table, Mapping) and all(isinstance(key, str) for key in table) for table in tables):
            raise LoRAError(
                f"`rank_pattern` and `alpha_pattern` of {source} are {shortened(repr(tables))}; expected tables of "
                "names and numbers."
            )
        numbers = [number for number in numbers if number is not None]
        numbers += [value for table in tables for value in table.values()]
        wrong = next((number for number in numbers if not is_usable(number)), 0)
        if not is_usable(wrong):
            # Python does not format integers of thousands of digits.
            spelled = f"a number of {wrong.bit_length()} bits" if isinstance(wrong, int) else shortened(repr(wrong))
            raise LoRAError(f"Ranks and alphas of {source} include {spelled}; expected {USABLE}.")
    scales = PeftScales(configs, source)
    scales.compile()
    return scales


def is_usable(value: Any) -> bool:
    """Whether a value is a number that can be an alpha: finite, and not beyond what float32 can multiply with."""
    # NaN compares false.
    return isinstance(value, int | float) and (value == 0 or SMALLEST < abs(value) < LARGEST)


def layer_scale(key: LoRAKey, update: Update, peft: PeftScales | None, default_alpha: float | None = None) -> float:
    """Return the scale of a layer: its own alpha, else PEFT's config, else `default_alpha`, else 1.

    Args:
        key (`LoRAKey`): A key of the layer.
        update (`Update`): Its parts, with `alpha` as stored.
        peft (`PeftScales`, *optional*): PEFT's config.
        default_alpha (`float`, *optional*): Alpha of layers that do not give one.

    Returns:
        `float`: May be 0 or negative.

    Raises:
        LoRAError: If alpha is not a finite number, or if the config contradicts the tensors.
    """
    rank = update.rank
    alpha = None if update.alpha is None else _number(update.alpha, key)
    # LyCORIS divides alpha by the rank of a decomposed factor; a LoKr of two full ones has none.
    if rank is None:
        if not update.inner.scaled_without_rank or alpha is not None or peft is None or key.is_flat:
            return 1.0
        scale = peft.scale(key.component, key.body, None)
        return 1.0 if scale is None else scale
    if rank == 0:
        raise LoRAError(f"`{key.prefix}{key.body}` has rank 0.")
    if alpha is not None:
        if peft is not None and not key.is_flat:
            _warn_if_different(alpha / rank, key, rank, peft)
        return alpha / rank
    # PEFT never wrote flat names, so its config does not refer to them.
    scale = peft.scale(key.component, key.body, rank) if peft is not None and not key.is_flat else None
    if scale is not None:
        return scale
    return 1.0 if default_alpha is None else default_alpha / rank


def _number(alpha: Any, key: LoRAKey) -> float:
    if alpha.numel() != 1:
        raise LoRAError(f"`{key.prefix}{key.body}.alpha` has shape {tuple(alpha.shape)}; expected a single number.")
    value = float(alpha)
    if not is_usable(value):
        raise LoRAError(f"`{key.prefix}{key.body}.alpha` is {value}; expected {USABLE}.")
    return value


def _warn_if_different(scale: float, key: LoRAKey, rank: int, peft: PeftScales) -> None:
    try:
        other = peft.scale(key.component, key.body, rank)
    except LoRAError:
        return
    if other is not None and not math.isclose(other, scale, rel_tol=1e-5):
        logger.warning(
            "`%s%s` has a scale of %g by its own alpha and of %g by %s; its own is used.",
            key.prefix, key.body, scale, other, peft.source,
        )  # fmt: skip
