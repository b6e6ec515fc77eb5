"""The table of all conditions: those of the methods, and synthetic ones of every kind of contribution."""

from benchmarks.support.conditions.case import LEFT, OTHER_PICTURE, PICTURE, TOP, ConditionCase
from benchmarks.support.conditions.modules import (
    controlnet_cases,
    identity_case,
    ip_adapter_case,
    nexus_gen_case,
    step1x_case,
)
from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.controlnet import OTHER_PICTURE as OTHER_CONTROL
from benchmarks.support.tiny.controlnet import PICTURE as CONTROL
from benchmarks.support.tiny.ip_adapter import XLABS, picture, tiny_clip_vision, tiny_siglip
from benchmarks.support.tiny.lora_encoder import tiny_lora, tiny_lora_encoder
from benchmarks.support.tiny.redux import redux_modules
from benchmarks.support.tiny.synthetic import (
    AddedChannels,
    AddedReference,
    AddedResiduals,
    AddedText,
    AlsoReplacedPrompt,
    ReplacedPrompt,
)
from diffusers_flux_ext import (
    AttributeValues,
    EntityRegions,
    FillMask,
    FlexControl,
    InpaintRegion,
    LoRAEmbedding,
    ReduxImages,
    ReferenceImages,
)
from diffusers_flux_ext.testing import seeded


CASES: dict[str, ConditionCase] = {
    "entities": ConditionCase(
        EntityRegions,
        {"prompts": ["a red dog", "a tree"], "masks": [LEFT, TOP], "negative": "own"},
        {
            "prompts": {"prompts": ["a red dog", "a blue bird"]},
            "masks": {"masks": [LEFT, (16, 0, 32, 32)]},
            "negative": {"negative": None},
            "max_sequence_length": {"max_sequence_length": [8, 16]},
            "mask_padding": {"mask_padding": True},
        },
    ),
    "inpaint": ConditionCase(
        InpaintRegion,
        {"image": PICTURE, "mask": (0.0, 0.0, 0.67, 1.0)},
        {"image": {"image": OTHER_PICTURE}, "mask": {"mask": (0.33, 0.0, 1.0, 1.0)}},
    ),
    "ip-adapter": ip_adapter_case(tiny_siglip),
    "ip-adapter xlabs": ip_adapter_case(tiny_clip_vision, **XLABS),
    **controlnet_cases(),
    "identity": identity_case(),
    "attributes": ConditionCase(
        AttributeValues,
        {"encoder": tiny_value_encoder(), "values": {"brightness": 0.7, "detail": None}},
        {
            "encoder": {"encoder": tiny_value_encoder(1)},
            "values": {"values": {"brightness": 0.7, "detail": 0.2}},
            "negative": {"negative": None},
        },
    ),
    "lora embedding": ConditionCase(
        LoRAEmbedding,
        {"encoder": tiny_lora_encoder(), "loras": tiny_lora(), "scale": 0.8},
        {
            "encoder": {"encoder": tiny_lora_encoder(1)},
            "loras": {"loras": [tiny_lora(), tiny_lora(1)]},
            "scale": {"scale": 0.2},
        },
        {"strict": "only what it refuses depends on it"},
    ),
    "redux": ConditionCase(
        ReduxImages,
        {"images": picture(0), "scale": 0.6, **redux_modules()},
        {
            "images": {"images": picture(3)},
            "scale": {"scale": 1.0},
            "region": {"region": LEFT},
            "negative": {"negative": "same"},
            "combine": {"combine": "sum"},
        },
        {
            **dict.fromkeys(["prompt_scale", "pooled_scale"], "refused beside what replaces the prompt"),
            **dict.fromkeys(redux_modules(), "changed in the tests of Redux alone"),
            **dict.fromkeys(["image_processor", "image_embeds"], "changed in the tests of Redux alone"),
        },
    ),
    "nexus-gen": nexus_gen_case(),
    "references": ConditionCase(
        ReferenceImages,
        {"images": [CONTROL, OTHER_CONTROL], "scale": [0.7, 1.0], "preferred_size": False},
        {
            "images": {"images": [OTHER_CONTROL, CONTROL]},
            "layout": {"layout": "offset"},
            "scale": {"scale": [1.0, 0.3]},
            "max_area": {"max_area": 32 * 32},
        },
        {"preferred_size": "of about 4000 tokens, too many for this many calls"},
    ),
    "fill": ConditionCase(
        FillMask,
        {"image": PICTURE, "mask": (0.0, 0.0, 0.67, 1.0), "paste_back": False},
        {"image": {"image": OTHER_PICTURE}, "mask": {"mask": LEFT}, "generator": {"generator": seeded(3)}},
        {"paste_back": "refused beside inpainting"},
        channels=320,
    ),
    "flex": ConditionCase(
        FlexControl,
        {"inpaint_image": PICTURE, "inpaint_mask": LEFT, "control_image": OTHER_PICTURE, "control_strength": 1.0},
        {
            "inpaint_image": {"inpaint_image": OTHER_PICTURE},
            "inpaint_mask": {"inpaint_mask": TOP},
            "control_image": {"control_image": PICTURE},
            "control_strength": {"control_strength": 0.4},
            "control_stop": {"control_stop": 1.0},
        },
        channels=132,
    ),
    "step1x": step1x_case(),
    "text": ConditionCase(
        AddedText,
        {"length": 4},
        {"length": {"length": 6}, "seed": {"seed": 1}},
        {"name": "a label", "in_prompt": "only ControlNets depend on it"},
    ),
    "reference": ConditionCase(
        AddedReference,
        {"length": 4, "name": "sketch"},
        {"length": {"length": 6}, "seed": {"seed": 1}},
        {"name": "a label"},
    ),
    "residuals": ConditionCase(
        AddedResiduals,
        {},
        {"double": {"double": 2}, "single": {"single": 1}, "seed": {"seed": 5}},
        {"width": "that of the transformer"},
    ),
    "channels": ConditionCase(
        AddedChannels,
        {"width": 4},
        {"seed": {"seed": 1}},
        {"width": "that which the transformer takes"},
        channels=4,
    ),
    "prompt": ConditionCase(ReplacedPrompt, {}, {"value": {"value": -0.5}}),
    "another prompt": ConditionCase(AlsoReplacedPrompt, {"value": 0.7}, {"value": {"value": -0.5}}),
}
SYNTHETIC = ("text", "reference", "residuals", "channels", "prompt", "another prompt")
METHODS = tuple(name for name in CASES if name not in SYNTHETIC)
