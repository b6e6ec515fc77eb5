"""What conditions are told of each step."""

from dataclasses import dataclass

import pytest
import torch

from benchmarks.support.tiny.synthetic import never
from diffusers_flux_ext import Contribution, DenoisingStep, FluxCondition, FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline


@dataclass(frozen=True, eq=False)
class Listening(FluxCondition):
    """Keeps the steps of a call."""

    heard: list[DenoisingStep]
    reuse = never

    def contribute(self, encoded, step):
        self.heard.append(step)
        return Contribution()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_steps_follow_the_schedule_in_both_branches(scale):
    heard = []
    pipe = tiny_pipeline(FluxConditionedPipeline)
    guided = {"negative_prompt": "ugly", "true_cfg_scale": scale}
    pipe(**call_kwargs(conditions=[Listening(heard)], prompt=["a cat", "a dog"], **guided))
    branches = ["cond", "uncond"] if scale > 1 else ["cond"]
    assert [(step.index, step.branch) for step in heard] == [(index, name) for index in range(3) for name in branches]
    assert {step.num_steps for step in heard} == {3}
    sigmas = pipe.scheduler.timesteps / 1000
    for step in heard:
        torch.testing.assert_close(step.timestep, sigmas[step.index].expand(2))
        following = sigmas[step.index + 1] if step.index < 2 else torch.tensor(0.0)
        torch.testing.assert_close(step.next_timestep, following.expand(2))
