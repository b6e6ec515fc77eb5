"""What is called: every public pipeline and condition with valid arguments, found in the package itself."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

import torch

import diffusers_flux_ext
from benchmarks.support import conditions
from benchmarks.support.tiny import insert_anything, lora_encoder, nexus_gen, redux, step1x
from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.controlnet import PICTURE
from benchmarks.support.tiny.infinite_you import ColorFaceEncoder, face, tiny_identity_modules
from diffusers_flux_ext import FluxCondition, FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs, seeded, tiny_pipeline, tiny_transformer


TOKENS, POOLED = torch.randn(1, 5, 40, generator=seeded(1)), torch.randn(1, 24, generator=seeded(2))
EMBEDS = {"prompt": None, "prompt_embeds": TOKENS, "pooled_prompt_embeds": POOLED}
NEGATIVE = {"negative_prompt": None, "negative_prompt_embeds": TOKENS, "negative_pooled_prompt_embeds": POOLED}
MASK = torch.ones(1, 5, dtype=torch.bool)
LATENTS = torch.randn(1, 6, 64, generator=seeded(3))
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0, "num_inference_steps": 2}

# What has to come with an argument of the common call, so that it is read.
COMMON: Mapping[str, Mapping[str, Any]] = {
    "sigmas": {"sigmas": [1.0, 0.5]},
    "guidance_scale": {"guidance_scale": 3.5},
    "num_images_per_prompt": {"num_images_per_prompt": 1},
    "latents": {"latents": LATENTS, "generator": None},
    "prompt_2": {"prompt_2": "a dog"},
    "negative_prompt_2": {"negative_prompt_2": "blurred"},
    **dict.fromkeys(("prompt_embeds", "pooled_prompt_embeds"), {**EMBEDS, **NEGATIVE}),
    **dict.fromkeys(("negative_prompt_embeds", "negative_pooled_prompt_embeds"), {**EMBEDS, **NEGATIVE}),
    **dict.fromkeys(
        ("prompt_embeds_mask", "negative_prompt_embeds_mask"),
        {
            **EMBEDS,
            **NEGATIVE,
            "mask_padding": True,
            "prompt_embeds_mask": MASK,
            "negative_prompt_embeds_mask": MASK,
        },
    ),
    "image": {"image": PICTURE, "strength": 0.6},
    "init_image": {"init_image": PICTURE, "strength": 0.6},
    "strength": {"image": PICTURE, "strength": 0.6},
    "joint_attention_kwargs": {"joint_attention_kwargs": {"scale": 0.5}},
    "callback_on_step_end": {"callback_on_step_end": lambda pipe, index, t, given: given},
    "callback_on_step_end_tensor_inputs": {
        "callback_on_step_end": lambda pipe, index, t, given: given,
        "callback_on_step_end_tensor_inputs": ["latents"],
    },
}


@dataclass(frozen=True, eq=False)
class Subject:
    """Attributes:
    name (`str`): The class.
    arguments (`list[str]`): What it takes.
    base (`Mapping[str, Any]`): Valid arguments.
    examples (`Mapping[str, Mapping[str, Any]]`): By argument, valid arguments besides in which it is given.
    run (`Callable`): Calls it and gives the images.
    pipe: The pipeline that draws.
    """

    name: str
    arguments: list[str]
    base: Mapping[str, Any]
    run: Callable[..., Any] = field(repr=False)
    pipe: Any = field(repr=False)
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def valid(self, argument: str) -> dict[str, Any]:
        """Valid arguments in which this one is given where it can be."""
        return {**self.base, **self.examples.get(argument, {})}


def _wide(channels: int) -> dict[str, Any]:
    return {"transformer": tiny_transformer(0, in_channels=64 + channels, out_channels=64)}


def _pipelines() -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]:
    """By class: further components, further valid arguments, and further examples."""
    step1x_inputs = {
        "prompt": None, "negative_prompt": None, "image": step1x.edited(), "max_sequence_length": 512,
        "instruction_embeds": step1x.instruction_embeds(0),
        "negative_instruction_embeds": step1x.instruction_embeds(1),
        "instruction_mask": torch.ones(1, 7), "negative_instruction_mask": torch.ones(1, 7),
    }  # fmt: skip
    identity = {"id_embeds": face(1), "keypoints": [[14, 10], [30, 9], [22, 16], [16, 24], [29, 23]]}
    shown = {"id_embeds": None, "keypoints": None, "id_image": PICTURE, "control_image": PICTURE}
    return {
        "FluxConditionedPipeline": ({}, {}, {}),
        "FluxEliGenPipeline": (
            {},
            {"entity_prompts": ["a cat", "a dog"], "entity_masks": [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 0.5)]},
            {},
        ),
        "FluxInfiniteYouPipeline": (
            {**tiny_identity_modules(), "face_encoder": ColorFaceEncoder()},
            identity,
            {
                "id_image": shown, "control_image": shown, "face_index": {**shown, "face_index": 0},
                "region": {"region": (0.0, 0.0, 0.5, 1.0)}, "negative": {"negative": "own"},
            },
        ),
        "FluxStep1XEditPipeline": (
            {"connector": step1x.tiny_connector(), "transformer": tiny_transformer(0, guidance_embeds=False)},
            step1x_inputs,
            {
                "image": {},
                "strength": {"init_image": PICTURE, "strength": 0.6},
                "rescale_above": {"rescale_above": 0.5},
                "rescale_power": {"rescale_above": 0.5, "rescale_power": 0.4},
                "size_level": {"size_level": 32, "height": None, "width": None},
            },
        ),
        "FluxLoRAEncoderPipeline": (
            {"lora_encoder": lora_encoder.tiny_lora_encoder()}, {"lora_inputs": lora_encoder.tiny_lora()}, {}
        ),
        "FluxNexusGenPipeline": (
            nexus_gen.nexus_components(),
            {"image_embeds": nexus_gen.image_embeds()["image_embeds"]},
            {
                **dict.fromkeys(("prompt", "language"), {"image_embeds": None, "language": "en"}),
                **dict.fromkeys(("image", "max_pixels"), {"image_embeds": None, "image": PICTURE, "max_pixels": 3136}),
                "strength": {"init_image": PICTURE, "strength": 0.6},
                "decoder": {"decoder": "generation"},
            },
        ),
        "FluxFlexPipeline": (
            _wide(132),
            {"inpaint_image": PICTURE, "inpaint_mask": (0.0, 0.0, 0.5, 1.0), "control_image": PICTURE},
            {},
        ),
        "FluxAttributeControlPipeline": (
            {"value_encoder": tiny_value_encoder()},
            {"attribute_values": {"brightness": 0.7, "detail": 0.2}},
            {"negative_attribute_values": {"negative_attribute_values": {"brightness": 0.1}}},
        ),
        "FluxInsertAnythingPipeline": (
            {**_wide(320), **redux.redux_modules()}, {**insert_anything.pictures(), "width": 64}, {}
        ),
    }  # fmt: skip


def _of_conditions() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """By condition and argument, examples besides the changes of the fixtures' cases."""
    # A reference of the preferred size has some thousands of tokens, unless it is left out.
    left_out = {"scale": 0.0, "preferred_size": False}
    return {
        "ReferenceImages": {"images": {"scale": None}, "preferred_size": left_out},
        "Step1XInstruction": dict.fromkeys(
            ("instruction_embeds", "negative_instruction_embeds"),
            {"instruction_mask": None, "negative_instruction_mask": None},
        ),
    }


def public(base: type) -> dict[str, type]:
    """The public classes below `base`, and itself where it can be used."""
    found = {name: getattr(diffusers_flux_ext, name) for name in diffusers_flux_ext.__all__}
    return {
        name: each
        for name, each in found.items()
        if isinstance(each, type) and issubclass(each, base) and not inspect.isabstract(each)
    }


def _pipeline_subject(name: str, cls: type) -> Subject:
    cases = _pipelines()
    if name not in cases:
        raise LookupError(f"{name} has no valid arguments. Add them in benchmarks/support/wrong_inputs/subjects.py.")
    components, inputs, examples = cases[name]
    pipe = tiny_pipeline(cls, **components)
    arguments = [each for each in inspect.signature(cls.__call__).parameters if each != "self"]
    known = {argument: {**COMMON.get(argument, {}), **examples.get(argument, {})} for argument in arguments}
    known |= {argument: given for argument, given in examples.items() if not given or argument in ("strength",)}
    base = call_kwargs(**{**GUIDED, **inputs})
    return Subject(name, arguments, base, lambda **given: pipe(**given)[0], pipe, known)


def _condition_subject(name: str, cls: type, case: conditions.ConditionCase, number: int) -> Subject:
    pipe = tiny_pipeline(FluxConditionedPipeline, **_wide(case.channels))

    def run(**given: Any) -> Any:
        return pipe(**call_kwargs(**GUIDED, conditions=[cls(**given)]))[0]

    arguments = [each.name for each in fields(cls)]  # type: ignore[arg-type]
    label = name if not number else f"{name} {number + 1}"
    return Subject(label, arguments, case.inputs, run, pipe, {**case.changes, **_of_conditions().get(name, {})})


@cache
def subjects() -> dict[str, Subject]:
    """Every public pipeline and condition; each raises an error here that has no valid inputs in the fixtures."""
    found = [_pipeline_subject(name, cls) for name, cls in public(FluxConditionedPipeline).items()]
    for name, cls in public(FluxCondition).items():
        cases = [case for case in conditions.CASES.values() if case.make is cls]
        if not cases:
            raise LookupError(
                f"There is no case of {name}. Add one to `CASES` in benchmarks/support/conditions/cases.py."
            )
        found += [_condition_subject(name, cls, case, number) for number, case in enumerate(cases)]
    return {subject.name: subject for subject in found}
