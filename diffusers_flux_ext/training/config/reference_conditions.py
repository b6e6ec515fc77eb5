"""Conditions by the columns that DiffSynth-Studio's script hands to its pipeline."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any


CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "kontext_images": {"type": "ReferenceImages", "inputs": {"images": "kontext_images"}},
    "eligen_entity_masks": {
        "type": "EntityRegions",
        "inputs": {"prompts": "eligen_entity_prompts", "masks": "eligen_entity_masks"},
    },
    "flux_fill_image": {"type": "FillMask", "inputs": {"image": "flux_fill_image", "mask": "flux_fill_mask"}},
    "controlnet_image": {"type": "ControlNetImage", "inputs": {"image": "controlnet_image"}},
    "value_controller_inputs": {
        "type": "AttributeValues",
        "inputs": {"values.brightness": "value_controller_inputs"},
    },
    "flux_redux_image": {"type": "ReduxImages", "inputs": {"images": "flux_redux_image"}},
    "ipadapter_images": {"type": "IPAdapterImages", "inputs": {"images": "ipadapter_images"}},
    "infinityou_id_image": {"type": "InfiniteYouIdentity", "inputs": {"id_image": "infinityou_id_image"}},
    "flex_inpaint_image": {
        "type": "FlexControl",
        "inputs": {"inpaint_image": "flex_inpaint_image", "inpaint_mask": "flex_inpaint_mask"},
    },
    "flex_control_image": {"type": "FlexControl", "inputs": {"control_image": "flex_control_image"}},
    "step1x_reference_image": {
        "type": "Step1XInstruction",
        "inputs": {"image": "step1x_reference_image", "instruction": "prompt"},
    },
    "nexus_gen_reference_image": {
        "type": "NexusGenEmbedding",
        "inputs": {"prompt": "prompt", "image": "nexus_gen_reference_image"},
    },
    "lora_encoder_inputs": {"type": "LoRAEmbedding", "inputs": {"loras": "lora_encoder_inputs"}},
}
"""Conditions by the column that asks for them in `--extra_inputs`."""

WITH: Mapping[str, tuple[str, str | None]] = {
    "eligen_entity_prompts": ("EntityRegions", None),
    "flux_fill_mask": ("FillMask", None),
    "controlnet_inpaint_mask": ("ControlNetImage", "inpaint_mask"),
    "infinityou_guidance": ("InfiniteYouIdentity", "guidance_scale"),
    "flex_inpaint_mask": ("FlexControl", None),
    "flex_control_strength": ("FlexControl", "control_strength"),
}
"""Further columns: their condition, and the field where it does not have the column anyway."""

_ONE = "it is one value for the whole run here; leave the column out and give it in `options` of the condition, as "

REFUSED: Mapping[str, str] = {
    "controlnet_processor_id": f"{_ONE}`mode`",
    "ipadapter_scale": f"{_ONE}`scale`",
    "lora_encoder_scale": f"{_ONE}`scale`",
    "flex_control_stop": "training draws noise levels instead of running the steps of a loop",
    "eligen_enable_on_negative": "training has no unconditional branch",
    "eligen_enable_inpaint": "it changes latents after a step; use `InpaintRegion` when drawing images",
    **{
        f"insert_anything_{name}": "make the diptychs beforehand and train on them with `flux_fill_image`, "
        "`flux_fill_mask` and `flux_redux_image`, see docs/training_recipes.md"
        for name in ("source_image", "source_mask", "ref_image", "ref_mask")
    },
}
"""Columns that have no counterpart, and why."""

_VISION, _PROCESSOR = "transformers:SiglipVisionModel", "diffusers_flux_ext:QwenVLProcessor"

MODULES: Mapping[str, Mapping[str, str]] = {
    "ControlNetImage": {"controlnet": "controlnet"},
    "AttributeValues": {"encoder": "attribute-encoder"},
    "ReduxImages": {"image_embedder": "redux-embedder", "image_encoder": _VISION},
    "IPAdapterImages": {"adapter": "ip-adapter", "image_encoder": _VISION},
    "InfiniteYouIdentity": {
        "controlnet": "infuse-net",
        "image_projector": "identity-projector",
        "face_encoder": "diffusers_flux_ext:InsightFaceEncoder",
    },
    "Step1XInstruction": {
        "connector": "step1x-connector",
        "mllm": "transformers:Qwen2_5_VLForConditionalGeneration",
        "mllm_processor": _PROCESSOR,
    },
    "NexusGenEmbedding": {
        "adapter": "nexus-merger",
        "mllm": "diffusers_flux_ext:NexusGenModel",
        "mllm_processor": _PROCESSOR,
    },
    "LoRAEmbedding": {"encoder": "lora-encoder"},
}
"""Modules of conditions: kinds by field."""

TRAINABLE: Mapping[str, str] = {
    "controlnet": "controlnet",
    "infuse-net": "controlnet",
    "identity-projector": "image_proj_model",
    "attribute-encoder": "value_controller",
    "ip-adapter": "ipadapter",
    "redux-embedder": "flux_redux_image_embedder",
    "step1x-connector": "step1x_connector",
    "nexus-merger": "nexus_gen_editing_adapter",
    "lora-encoder": "lora_encoder",
}
"""Names in `--trainable_models`, by our kinds of modules."""


def conditions_of(columns: Collection[str], trained: Collection[str]) -> list[dict[str, Any]]:
    """Return the conditions that columns ask for.

    Args:
        columns (`Collection[str]`): `--extra_inputs`.
        trained (`Collection[str]`): `--trainable_models`.

    Returns:
        `list[dict]`: sections of the configuration; paths of modules are `PATH`.

    Raises:
        ValueError: if a column has no counterpart; the message says why.
    """
    made: dict[str, dict[str, Any]] = {}
    for column in columns:
        if column in REFUSED:
            raise ValueError(f"--extra_inputs has {column!r}: {REFUSED[column]}.")
        if column not in CONDITIONS and column not in WITH:
            raise ValueError(
                f"--extra_inputs has {column!r}, which is given by hand under `conditions`; see "
                f"docs/training_config.md. Known: {sorted([*CONDITIONS, *WITH])}."
            )
        if column in CONDITIONS:
            given = copy.deepcopy(dict(CONDITIONS[column]))
            made.setdefault(given["type"], {**given, "inputs": {}})["inputs"].update(given["inputs"])
    if "InfiniteYouIdentity" in made and "ControlNetImage" in made:
        # InfuseNet is the ControlNet of this column there.
        made["InfiniteYouIdentity"]["inputs"]["control_image"] = made.pop("ControlNetImage")["inputs"]["image"]
    for column in columns:
        kind, name = WITH.get(column, ("", None))
        if name is not None and kind in made:
            made[kind]["inputs"][name] = column
    for kind, condition in made.items():
        if kind in MODULES:
            condition["modules"] = {
                name: {"kind": each, "path": "PATH", "train": TRAINABLE.get(each) in trained}
                for name, each in MODULES[kind].items()
            }
    return list(made.values())
