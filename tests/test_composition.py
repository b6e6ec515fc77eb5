"""Conditions of every kind together, and the clashes that are refused."""

import re
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig

from diffusers_flux_ext import (
    Contribution,
    ControlNetImage,
    EntityRegions,
    FluxCondition,
    FluxConditionedPipeline,
    InpaintRegion,
    PromptEmbeds,
)
from tests.fixtures.controlnet import PICTURE as CONTROL
from tests.fixtures.controlnet import tiny_controlnet
from tests.fixtures.synthetic import AddedReference, AddedResiduals, AddedText
from tests.fixtures.tiny import call_kwargs, tiny_pipeline


LEFT = (0.0, 0.0, 0.5, 1.0)
PICTURE = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
PARTS = {
    "entities": EntityRegions(["a red dog"], [LEFT], on_negative=True),
    "inpaint": InpaintRegion(PICTURE, (16, 0, 48, 16)),
    "text": AddedText(4),
    "reference": AddedReference(4),
    "residuals": AddedResiduals(),
    "controlnet": ControlNetImage(tiny_controlnet(5), CONTROL, 0.7, end=0.7),
    "xlabs": ControlNetImage(tiny_controlnet(6, "xlabs"), CONTROL, 0.5, mask_region=LEFT, negative="own"),
}
PAIRS = list(combinations(PARTS, 2))
TRIPLES = [names for names in combinations(PARTS, 3) if "controlnet" in names]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


@dataclass(frozen=True, eq=False)
class OtherPrompt(FluxCondition):
    """Replaces the prompt by one of another length."""

    scale: float = 1.0

    def replace_prompt(self, encoded, step):
        tokens = torch.full((1, 5, step.prompt.hidden_states.shape[2]), self.scale)
        batch = step.latents.shape[0]
        return PromptEmbeds(tokens.expand(batch, -1, -1), step.prompt.pooled, torch.zeros(5, 3))

    def contribute(self, encoded, step):
        return Contribution()


class AnotherPrompt(OtherPrompt):
    """A second class that replaces the prompt."""


@pytest.mark.parametrize("left_out", PARTS)
def test_all_but_one_run_together_and_each_counts(pipe, left_out):
    arguments = {"prompt": ["a", "b"], "negative_prompt": "ugly", "true_cfg_scale": 2.0}
    every = pipe(**call_kwargs(conditions=list(PARTS.values()), **arguments)).images
    fewer = [condition for name, condition in PARTS.items() if name != left_out]
    assert (every - pipe(**call_kwargs(conditions=fewer, **arguments)).images).abs().max() > 1e-4


@pytest.mark.parametrize("names", [*PAIRS, *TRIPLES], ids="-".join)
def test_both_orders_agree_and_each_one_counts(pipe, names):
    parts = [PARTS[name] for name in names]
    results = [pipe(**call_kwargs(conditions=order)).images for order in (parts, parts[::-1])]
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)
    for index in range(len(parts)):
        without = pipe(**call_kwargs(conditions=parts[:index] + parts[index + 1 :])).images
        assert (results[0] - without).abs().max() > 1e-4


def test_order_of_conditions_does_not_matter(pipe):
    parts = list(PARTS.values())
    results = [pipe(**call_kwargs(conditions=order)).images for order in (parts, parts[::-1])]
    torch.testing.assert_close(*results, atol=1e-4, rtol=0)


def test_a_replaced_prompt_composes_with_entities(pipe):
    plain = pipe(**call_kwargs(conditions=[PARTS["entities"]])).images
    replaced = pipe(**call_kwargs(conditions=[OtherPrompt(), PARTS["entities"]])).images
    assert (plain - replaced).abs().max() > 1e-3


def test_two_replaced_prompts_are_refused_by_name(pipe):
    with pytest.raises(ValueError, match="OtherPrompt and AnotherPrompt"):
        pipe(**call_kwargs(conditions=[OtherPrompt(), AnotherPrompt()]))


def test_contribute_runs_once_per_branch_unless_per_step(pipe):
    calls = []

    @dataclass(frozen=True, eq=False)
    class Counting(FluxCondition):
        name: str

        def contribute(self, encoded, step):
            calls.append((self.name, step.branch, step.index))
            return Contribution()

    class CountingSteps(Counting):
        per_step = True

    guided = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
    pipe(**call_kwargs(conditions=[Counting("once"), CountingSteps("steps")], **guided))
    assert [call for call in calls if call[0] == "once"] == [("once", "cond", 0), ("once", "uncond", 0)]
    assert len([call for call in calls if call[0] == "steps"]) == 6


@pytest.mark.parametrize(
    "cache", [FirstBlockCacheConfig(0.1), MagCacheConfig(num_inference_steps=3, mag_ratios=torch.ones(3))]
)
def test_caches_that_would_count_residuals_twice_are_refused(pipe, cache):
    pipe.transformer.enable_cache(cache)
    try:
        with pytest.raises(ValueError, match=f"{type(cache).__name__}, which would count the residuals.*twice"):
            pipe(**call_kwargs(conditions=[PARTS["controlnet"]]))
    finally:
        pipe.transformer.disable_cache()
    pipe(**call_kwargs(conditions=[PARTS["controlnet"]]))


def test_a_module_on_another_dtype_is_refused(pipe):
    @dataclass(frozen=True, eq=False)
    class WithModule(FluxCondition):
        encoder: torch.nn.Module

        def contribute(self, encoded, step):
            return Contribution()

    with pytest.raises(ValueError, match="`encoder` of WithModule is torch.bfloat16.*float32"):
        pipe(**call_kwargs(conditions=[WithModule(torch.nn.Linear(2, 2).to(torch.bfloat16))]))
    pipe(**call_kwargs(conditions=[WithModule(torch.nn.Linear(2, 2))]))


def test_the_documented_condition_works(pipe):
    page = Path(__file__).parents[1] / "docs" / "composition.md"
    code = re.search(r"```python\n(from dataclasses.*?)```", page.read_text(), re.S).group(1)
    names: dict = {}
    exec(code, names)
    condition = names["Footnote"]("a blue car")
    assert (pipe(**call_kwargs(conditions=[condition])).images - pipe(**call_kwargs()).images).abs().max() > 1e-3
