"""The cases of conditions whose own models make them longer than an entry of a table."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.support.conditions.case import LEFT, ConditionCase
from benchmarks.support.tiny.controlnet import OTHER_PICTURE as OTHER_CONTROL
from benchmarks.support.tiny.controlnet import PICTURE as CONTROL
from benchmarks.support.tiny.controlnet import tiny_controlnet
from benchmarks.support.tiny.infinite_you import ColorFaceEncoder, face, tiny_identity_modules, tiny_projector
from benchmarks.support.tiny.ip_adapter import image_embeds, picture, tiny_ip_adapter
from benchmarks.support.tiny.nexus_gen import image_embeds as nexus_embeds
from benchmarks.support.tiny.nexus_gen import tiny_adapter, tiny_merger
from benchmarks.support.tiny.step1x import edited, instruction_embeds, tiny_connector
from diffusers_flux_ext import (
    ControlNetImage,
    InfiniteYouIdentity,
    IPAdapterImages,
    NexusGenEmbedding,
    Step1XInstruction,
)
from diffusers_flux_ext.inputs.vision import image_processor_for
from diffusers_flux_ext.testing import seeded


def ip_adapter_case(make_encoder: Callable[[int], Any], **sizes: Any) -> ConditionCase:
    encoder, adapter = make_encoder(0), tiny_ip_adapter(1, **sizes)
    processor = image_processor_for(encoder)
    processor.image_mean = [0.2, 0.3, 0.4]
    depth = adapter.config.num_blocks
    return ConditionCase(
        IPAdapterImages,
        {"adapter": adapter, "images": [picture(0), picture(1)], "image_encoder": encoder, "scale": 0.8},
        {
            "adapter": {"adapter": tiny_ip_adapter(2, **sizes)},
            "images": {"images": [picture(0), picture(3)]},
            "scale": {"scale": [0.3] + [1.2] * (depth - 1)},
            "start": {"start": 0.5},
            "end": {"end": 0.5},
            "region": {"region": LEFT},
            "negative": {"negative": None},
            "image_encoder": {"image_encoder": make_encoder(1)},
            "image_processor": {"image_processor": processor},
            "image_embeds": {"images": None, "image_embeds": image_embeds(4)},
            "negative_scale": {"negative_scale": 0.2},
        },
    )


def controlnet_cases() -> dict[str, ConditionCase]:
    union, inpaint = {"controlnet": tiny_controlnet(5, "union")}, {"controlnet": tiny_controlnet(6, "inpaint")}
    # Steps come in twos here, and a window takes whole steps.
    changes = {
        "controlnet": {"controlnet": tiny_controlnet(8, "union")},
        "image": {"image": OTHER_CONTROL},
        "scale": {"scale": [0.7, 0.7, 0.1]},
        "start": {"start": 0.5},
        "end": {"end": 0.5},
        "mode": {"mode": "depth"},
        "region": {"region": LEFT},
        "negative": {"negative": None},
        "generator": {"generator": seeded(3)},
    }
    fixed = {"inpaint_mask": "for inpainting ControlNets, which are the next case"}
    others = dict.fromkeys([name for name in changes if name != "inpaint_mask"], "changed in the case of the union")
    mask = {"inpaint_mask": (0.0, 0.0, 0.5, 1.0)}
    return {
        "controlnet": ConditionCase(
            ControlNetImage, {**union, "image": CONTROL, "scale": 0.7, "mode": "canny"}, changes, fixed
        ),
        "controlnet inpaint": ConditionCase(
            ControlNetImage,
            {**inpaint, "image": CONTROL, **mask, "negative": "own"},
            {"inpaint_mask": {"inpaint_mask": (0.0, 0.0, 1.0, 0.5)}},
            others,
        ),
    }


def identity_case() -> ConditionCase:
    people = ((0, 0, 30, 30), (30, 0, 60, 40))
    inputs = {**tiny_identity_modules(), "id_image": CONTROL, "face_encoder": ColorFaceEncoder(people)}
    return ConditionCase(
        InfiniteYouIdentity,
        inputs,
        {
            "controlnet": {"controlnet": tiny_controlnet(9)},
            "image_projector": {"image_projector": tiny_projector(9)},
            "id_image": {"id_image": OTHER_CONTROL},
            "id_embeds": {"id_image": None, "id_embeds": face(1)},
            "control_image": {"control_image": OTHER_CONTROL},
            "keypoints": {"keypoints": [[14, 10], [30, 9], [22, 16], [16, 24], [29, 23]]},
            "face_encoder": {"face_encoder": ColorFaceEncoder()},
            "scale": {"scale": 0.2},
            "start": {"start": 0.5},
            "end": {"end": 0.5},
            "guidance_scale": {"guidance_scale": 5.0},
            "region": {"region": LEFT},
            "negative": {"negative": "own"},
            "face_index": {"face_index": 0},
        },
    )


def nexus_gen_case() -> ConditionCase:
    asked = ("prompt", "image", "mllm", "mllm_processor", "language", "max_pixels")
    return ConditionCase(
        NexusGenEmbedding,
        {"adapter": tiny_merger(), "image_embeds": nexus_embeds()},
        {
            "adapter": {"adapter": tiny_adapter()},
            "image_embeds": {"image_embeds": nexus_embeds(1)},
        },
        dict.fromkeys(asked, "asks the language model before the loop, apart from the other conditions"),
    )


def step1x_case() -> ConditionCase:
    inputs = {
        "connector": tiny_connector(),
        "image": edited(),
        "instruction_embeds": instruction_embeds(0),
        "instruction_mask": torch.arange(7)[None] < 6,
        "negative_instruction_embeds": instruction_embeds(1),
        "negative_instruction_mask": torch.arange(7)[None] < 3,
        "rescale_above": 0.6,
    }
    # The language model would be asked some hundred times here.
    elsewhere = "changed in the tests of the pipeline"
    return ConditionCase(
        Step1XInstruction,
        inputs,
        {
            "image": {"image": edited(1)},
            "instruction_embeds": {"instruction_embeds": instruction_embeds(2)},
            "negative_instruction_embeds": {"negative_instruction_embeds": instruction_embeds(3)},
        },
        {
            **dict.fromkeys(("connector", "rescale_above", "rescale_power"), elsewhere),
            **dict.fromkeys(("instruction_mask", "negative_instruction_mask"), elsewhere),
            **dict.fromkeys(("instruction", "negative_instruction", "cut_at_apostrophes"), elsewhere),
            **dict.fromkeys(("mllm", "mllm_processor"), elsewhere),
        },
    )
