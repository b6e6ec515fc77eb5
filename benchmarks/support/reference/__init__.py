"""Tiny instances of the reference package's FLUX modules, each derived from a diffusers component.

Every forward that runs is the reference's own; nothing here computes a result. Asking for a `reference_*` name skips
the asking test module where the reference package is not installed. A further method adds one file with one
`reference_<module>(component)` function, and a line below.
"""

import importlib
from typing import Any


_MODULES = {
    "attribute_values": ["reference_value_encoder"],
    "boot": ["import_reference"],
    "controlnet": ["controlnet_input", "reference_controlnet", "reference_multi_controlnet"],
    "dit": ["reference_dit", "reference_dit_weights", "reference_velocity"],
    "infinite_you": ["EmbeddedFace", "reference_projector"],
    "ip_adapter": ["reference_image_embeds", "reference_ip_adapter", "reference_siglip"],
    "lora_encoder": ["reference_lora_encoder"],
    "lora_fusion": ["load_merged", "reference_lora_patcher"],
    "nexus_gen": ["reference_nexus_adapter", "reference_nexus_merger"],
    "step1x": ["reference_connector", "reference_embedder"],
    "pipeline": ["ReferencePair", "reference_pair", "reference_pipeline"],
    "redux": ["add_redux", "reference_redux"],
    "text_encoders": ["reference_clip", "reference_t5"],
    "timestep_lora": ["load_reference_timestep_lora"],
    "vae": ["reference_vae_decoder", "reference_vae_encoder"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
