"""The sections of tasks beside the usual one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..distill import TeacherOptions
from .sample_sections import Section, SourceSection


class TeacherSection(Section):
    """What a student imitates: the model before training, drawn by the ordinary pipeline.

    Args:
        num_inference_steps (`int`): Its steps, at least the student's.
        guidance_scale (`float`): Its embedded guidance; ignored by models without one.
        true_cfg_scale (`float`): Its classifier-free guidance, from 1; above 1 it takes twice the time.
        negative_prompt (`str`): Its negative prompt, for `true_cfg_scale` above 1.
    """

    num_inference_steps: int = Field(default=28, ge=1)
    guidance_scale: float = Field(default=3.5, ge=0)
    true_cfg_scale: float = Field(default=1.0, ge=1)
    negative_prompt: str = ""

    @model_validator(mode="after")
    def _negative_acts(self) -> TeacherSection:
        if self.negative_prompt and not self.guided:
            raise ValueError(
                f"got the `negative_prompt` {self.negative_prompt!r} with `true_cfg_scale` {self.true_cfg_scale}, "
                f"where it has no effect; set `true_cfg_scale` above 1, or leave the negative prompt out"
            )
        return self

    @property
    def guided(self) -> bool:
        """Whether it has classifier-free guidance."""
        return self.true_cfg_scale > 1

    @property
    def options(self) -> TeacherOptions:
        """How it draws."""
        return TeacherOptions(self.num_inference_steps, self.guidance_scale, self.true_cfg_scale)


class DistillSection(Section):
    """Distillation: what is trained draws in a few steps, without classifier-free guidance, what the teacher draws.

    Args:
        method (`str`):
            `"end_to_end"`: all steps run with a gradient, and the result is compared with the teacher's.
            `"per_step"`: each step is compared with the straight line between two states of the teacher.
        num_inference_steps (`int`): The student's steps.
        noises (`int`): How many different noises each sample has, which its visits take in turn.
        teacher (`TeacherSection`): The teacher.
    """

    method: Literal["end_to_end", "per_step"] = "end_to_end"
    num_inference_steps: int = Field(default=4, ge=1)
    noises: int = Field(default=1, ge=1)
    teacher: TeacherSection = TeacherSection()

    @model_validator(mode="after")
    def _fewer_steps(self) -> DistillSection:
        if self.num_inference_steps > self.teacher.num_inference_steps:
            raise ValueError(
                f"got {self.num_inference_steps} steps of the student and {self.teacher.num_inference_steps} of the "
                f"teacher; expected at most as many"
            )
        return self


class PairSection(Section):
    """Two sets of images that differ in what is to be learnt.

    Args:
        first (`SourceSection`, *optional*): The images without it, on which a first LoRA is trained; or `lora`.
        lora (`str`, *optional*): The first LoRA, if there is one already.
        second (`SourceSection`): The images with it.
    """

    first: SourceSection | None = None
    lora: str | None = None
    second: SourceSection

    @model_validator(mode="after")
    def _one_first(self) -> PairSection:
        if (self.first is None) == (self.lora is None):
            raise ValueError("got both or neither of `first` and `lora`; expected one of them")
        return self


class DifferentialSection(Section):
    """A LoRA of a difference: what a second LoRA adds to a first one that has learnt all the rest.

    For each pair a LoRA is trained on the first images, and another one on top of it on the second images. The result
    is the mean of the second ones.

    Args:
        pairs (`list[PairSection]`): The pairs.
        first_updates (`int`, *optional*): Updates of first LoRAs, by default those of `run`.
        fused (`bool`):
            Whether first LoRAs are added to the weights, which is faster and rounds, instead of being kept beside
            them.
        rank (`int`, *optional*):
            Highest rank of the mean of several pairs, cut by its singular values; by default it is exact, and ranks
            add up.
    """

    pairs: list[PairSection] = Field(min_length=1)
    first_updates: int | None = Field(default=None, ge=1)
    fused: bool = False
    rank: int | None = Field(default=None, ge=1)
