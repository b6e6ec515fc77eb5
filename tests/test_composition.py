"""Conditions of every kind together, and the clashes that are refused."""

import re
from dataclasses import dataclass, fields
from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig

import diffusers_flux_ext
from benchmarks.support.conditions import (
    CASES,
    LORA,
    METHODS,
    REFUSED,
    REFUSED_TWICE,
    WINDOWS,
    draw,
    pipeline_for,
    promised,
)
from benchmarks.support.tiny.synthetic import never
from diffusers_flux_ext import Contribution, FluxCondition, FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline


CLOSE = {"atol": 1e-5, "rtol": 0}
VISIBLE = 1e-4
PAIRS = [pair for pair in permutations(CASES, 2) if frozenset(pair) not in REFUSED]
ALL_TRIPLES = [
    triple
    for triple in combinations(CASES, 3)
    if len(set(triple) & set(METHODS)) >= 2 and not any(frozenset(pair) in REFUSED for pair in combinations(triple, 2))
]
# All pairs run, and the triples that the documentation promises; of the others a sample does.
TRIPLES = [*promised(), *(triple for triple in ALL_TRIPLES[::11] if triple not in promised())]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


def title(names):
    return " + ".join(names)


class TestRegistry:
    def test_every_public_condition_is_there(self):
        public = {getattr(diffusers_flux_ext, name) for name in diffusers_flux_ext.__all__}
        conditions = {part for part in public if isinstance(part, type) and issubclass(part, FluxCondition)}
        missing = conditions - {FluxCondition} - {CASES[name].make for name in METHODS}
        assert not missing, "add a case to benchmarks/support/conditions/cases.py"
        assert {CASES[name].make for name in METHODS} <= conditions

    @pytest.mark.parametrize("name", CASES)
    def test_every_input_is_changed_or_says_why_not(self, name):
        case = CASES[name]
        assert case.changes.keys() | case.fixed.keys() == {part.name for part in fields(case.make)}
        assert not case.changes.keys() & case.fixed.keys()


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair[0] < pair[1]], ids=title)
def test_a_pair_is_the_same_in_both_orders(pair):
    torch.testing.assert_close(draw(*pair, steps=1), draw(*pair[::-1], steps=1), **CLOSE)


@pytest.mark.parametrize("other", [other for pair in PAIRS if pair[0] == "inpaint" for other in pair[1:]])
def test_pixels_that_are_kept_are_pasted_in_either_order(other):
    one, same = (draw(*pair, output_type="pt") for pair in (("inpaint", other), (other, "inpaint")))
    torch.testing.assert_close(one, same, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if set(pair) <= set(METHODS)], ids=title)
def test_every_input_of_the_first_counts_beside_the_second(pair):
    assert (draw(*pair, steps=1) - draw(pair[1], steps=1)).abs().max() > VISIBLE
    ignored = []
    for change in CASES[pair[0]].changes:
        call = {"steps": 2 if change in WINDOWS else 1, "guided": change.startswith("negative")}
        if (draw(*pair, change=change, **call) - draw(*pair, **call)).abs().max() < VISIBLE:
            ignored.append(change)
    assert ignored == []


@pytest.mark.slow
@pytest.mark.parametrize("triple", TRIPLES, ids=title)
def test_a_triple_is_the_same_in_other_orders_and_each_part_counts(triple):
    base = draw(*triple, steps=1)
    torch.testing.assert_close(draw(*triple), draw(*triple[::-1]), **CLOSE)
    torch.testing.assert_close(base, draw(*triple[1:], triple[0], steps=1), **CLOSE)
    for pair in combinations(triple, 2):
        assert (base - draw(*pair, steps=1)).abs().max() > VISIBLE


def test_all_of_them_together():
    names: list[str] = []
    for name in CASES:
        if not any(frozenset((name, other)) in REFUSED for other in names):
            names.append(name)
    base = draw(*names)
    torch.testing.assert_close(base, draw(*names[::-1]), atol=1e-4, rtol=0)
    for name in names:
        if not CASES[name].channels:
            assert (base - draw(*[other for other in names if other != name])).abs().max() > VISIBLE, name


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: title(sorted(pair)))
def test_a_refused_pair_names_both(pair):
    for order in permutations(sorted(pair)):
        with pytest.raises(ValueError, match=REFUSED[pair]):
            draw(*order)


@pytest.mark.parametrize("name", CASES)
def test_the_same_condition_twice_counts_twice_or_is_refused(name):
    if name in REFUSED_TWICE:
        with pytest.raises(ValueError, match=REFUSED_TWICE[name]):
            draw(name, name)
    else:
        assert (draw(name, name) - draw(name)).abs().max() > VISIBLE


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", [pair for pair in combinations(METHODS, 2) if frozenset(pair) not in REFUSED], ids=title
)
def test_batches_of_every_pair_of_methods_are_their_samples(pair):
    """Two prompts and two images each equal single calls, for the methods two by two."""
    latents = torch.randn(4, 6, 64, generator=torch.Generator().manual_seed(5))
    prompts = ["a cat", "a tree"]
    pipe, conditions = pipeline_for(*pair), [CASES[name].build() for name in pair]
    # Of these methods, inpainting alone changes pixels.
    output_type = "pt" if "inpaint" in pair else "latent"
    short = {"latents": latents, "conditions": conditions, "num_inference_steps": 2, "output_type": output_type}
    together = pipe(**call_kwargs(**short, prompt=prompts, num_images_per_prompt=2)).images
    for index in (0, 3):
        inputs = {"prompt": prompts[index // 2], "latents": latents[index : index + 1]}
        alone = pipe(**call_kwargs(**{**short, **inputs})).images
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=0)


def test_contribute_runs_once_per_branch_unless_per_step(pipe):
    calls = []

    @dataclass(frozen=True, eq=False)
    class Counting(FluxCondition):
        name: str

        def contribute(self, encoded, step):
            calls.append((self.name, step.branch, step.index))
            return Contribution()

    class CountingSteps(Counting):
        reuse = never

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
            pipe(**call_kwargs(conditions=[CASES["controlnet"].build()]))
    finally:
        pipe.transformer.disable_cache()
    pipe(**call_kwargs(conditions=[CASES["controlnet"].build()]))


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


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_lora_and_a_condition_both_count(name):
    both = draw(LORA, name)
    assert (both - draw(name)).abs().max() > VISIBLE
    if not CASES[name].channels:
        assert (both - draw(LORA)).abs().max() > VISIBLE


class TestDocumentation:
    PAGE = Path(__file__).parents[1] / "docs" / "composition_table.md"

    def test_the_table_has_a_row_for_every_condition(self):
        rows = {line.split("|")[1].strip() for line in self.PAGE.read_text().splitlines() if line.startswith("|")}
        missing = {f"`{name}`" for name in CASES} - rows
        assert not missing, "run python -m benchmarks.composition_table --write docs/composition_table.md"

    def test_the_table_has_what_is_promised(self):
        text = self.PAGE.read_text()
        assert [title(names) for names in promised() if f"| {title(names)} |" not in text] == []
