"""The safetensors header of a written LoRA."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import LoRAError
from ..layouts import LoRALayout
from ..reading.peft_config import tuner_of
from ..reading.read import LoRAFile
from ..reading.scale import PEFT_HEADER, read_peft_scales
from ..updates import LoRA, Update
from .patterns import in_any_order


@dataclass
class TargetLayer:
    """A layer of the target layout with its update.

    Attributes:
        component (`str`): The model that it belongs to.
        body (`str`): The layer as named in the layout, dotted.
        update (`Update`): Its update.
        is_norm (`bool`): Whether it is a normalisation.
    """

    component: str
    body: str
    update: Update
    is_norm: bool = False


def write_header(adapter: LoRAFile, layout: LoRALayout, targets: Sequence[TargetLayer]) -> tuple[dict[str, str], str]:
    """Return the header of a written file.

    PEFT's config is kept where diffusers will read it and it is still right; otherwise alphas replace it.

    Args:
        adapter (`LoRAFile`): The LoRA that was read.
        layout (`LoRALayout`): The target layout.
        targets (`Sequence[TargetLayer]`): The layers that are written.

    Returns:
        `tuple`: The header, and whether alphas are written for `"all"` layers, where they are `"needed"`, or for
        `"none"`.
    """
    metadata = dict(adapter.metadata)
    if layout.alpha == "never":
        # Its alphas are in the factors now, so it must not be applied again.
        if PEFT_HEADER in metadata:
            metadata[f"folded_{PEFT_HEADER}"] = metadata.pop(PEFT_HEADER)
        return metadata, "none"
    if layout.name != "diffusers":
        # PEFT's config is kept for converting back; alphas everywhere prevent its use with other ranks.
        return metadata, "all" if layout.alpha == "always" or PEFT_HEADER in metadata else layout.alpha
    scaled = [target.update for target in targets if target.update.rank is not None]
    said = "all" if any(update.alpha is not None or update.scale != 1 for update in scaled) else "none"
    if PEFT_HEADER not in metadata:
        return metadata, said
    described = _described(metadata, targets)
    if described is not None:
        return {**metadata, PEFT_HEADER: described}, "none"
    # diffusers refuses a file that has both alphas and PEFT's config.
    metadata.pop(PEFT_HEADER)
    return metadata, said


def _described(metadata: Mapping[str, str], targets: Sequence[TargetLayer]) -> str | None:
    """PEFT's config for diffusers' names, if it gives every layer the scale that it has."""
    scales = read_peft_scales(metadata, None)
    if scales is None or any(tuner_of(config) != "LORA" for config in scales.configs.values()):
        return None
    if any(not isinstance(target.update.inner, LoRA) or target.is_norm for target in targets):
        return None
    for target in targets:
        try:
            scale = scales.scale(target.component, target.body, target.update.rank or 1)
        except LoRAError:
            return None
        if scale is None or not math.isclose(scale, target.update.scale, rel_tol=1e-12):
            return None
    configs = {
        component: in_any_order(scales, component, [t.body for t in targets if t.component == component])
        for component in scales.configs
    }
    flat = {f"{component}.{name}": value for component, config in configs.items() for name, value in config.items()}
    entries = json.loads(metadata[PEFT_HEADER])
    return metadata[PEFT_HEADER] if entries == flat else json.dumps(flat, indent=2, sort_keys=True)
