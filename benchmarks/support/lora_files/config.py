"""PEFT configurations as headers and sidecars carry them, and the scales that they mean."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from benchmarks.support.lora_files.cases import Case
from benchmarks.support.lora_files.layouts import TRANSFORMER


Value = TypeVar("Value", int, float)


def pattern_value(patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """PEFT's rule: the first pattern that matches the end of the module's name."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def exact_patterns(values: Mapping[str, Value]) -> tuple[Value, dict[str, Value]]:
    """The most common value, and one anchored pattern for every module that differs from it."""
    common = Counter(values.values()).most_common(1)[0][0]
    names = {module: module if "." in module else f"^{module}" for module in values}
    return common, {names[module]: value for module, value in values.items() if value != common}


def peft_config(case: Case, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """The configuration of one component whose modules have these ranks and alphas."""
    if case.patterns is None:
        rank, rank_pattern = exact_patterns(ranks)
        alpha, alpha_pattern = exact_patterns(alphas)
    else:
        rank, alpha, (rank_pattern, alpha_pattern) = 4, 8, case.patterns
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "target_modules": sorted(ranks),
        "use_rslora": case.rslora,
        "use_dora": False,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def config_scale(case: Case, rank: int, alpha: float) -> float:
    """What PEFT multiplies `B A` by."""
    return alpha / math.sqrt(rank) if case.rslora else alpha / rank


def header(configs: Mapping[str, dict[str, Any]], prefixed: bool) -> dict[str, str]:
    """The safetensors metadata of diffusers' savers: by component, or of the transformer alone."""
    if prefixed:
        packed = {f"{part}.{name}": value for part, config in configs.items() for name, value in config.items()}
    else:
        packed = configs[TRANSFORMER]
    return {"lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True)}


def sidecar(config: Mapping[str, Any]) -> dict[str, Any]:
    """`adapter_config.json` of `PeftModel.save_pretrained`."""
    return {"peft_type": "LORA", "base_model_name_or_path": "flux", "inference_mode": True, **config}
