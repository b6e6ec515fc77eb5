"""The contract of a condition: what it asks of a pipeline, how long contributions hold, what it costs and trains."""

import importlib
import logging
import sys
import warnings
from dataclasses import dataclass, fields
from types import SimpleNamespace

import pytest
import torch

from benchmarks.support.conditions import CASES, METHODS, pipeline_for
from benchmarks.support.tiny.attribute_values import tiny_value_encoder
from benchmarks.support.tiny.ip_adapter import picture
from benchmarks.support.tiny.redux import redux_modules
from diffusers_flux_ext import (
    AttributeValues,
    Contribution,
    Demand,
    EntityRegions,
    FluxCondition,
    FluxConditionedPipeline,
    InpaintRegion,
    ReduxImages,
    plan_vram,
    predict_velocity,
)
from diffusers_flux_ext.attention.processor import regional_attention
from diffusers_flux_ext.canvas import Canvas
from diffusers_flux_ext.condition import OUTSIDE_OF_MASK, Encoders, check_conditions
from diffusers_flux_ext.denoise import DenoisingStep, PromptEmbeds
from diffusers_flux_ext.encoded import EncodedConditions
from diffusers_flux_ext.testing import call_kwargs, different, seeded, tiny_pipeline


LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
# Modules of conditions that are frozen: they run in `encode`.
FROZEN = {"image_encoder", "mllm", "face_encoder"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


def canvas_of(pipe):
    generator = torch.randn(1, 6, 64, generator=seeded(1))
    return Canvas(
        height=32, width=48, batch_size=1, num_images_per_prompt=1, device=torch.device("cpu"), dtype=torch.float32,
        token_size=16, max_sequence_length=16, mask_padding=False, guided=True, noise=generator,
    )  # fmt: skip


def step_of(pipe, branch="cond", index=0, seed=0):
    width, pooled = pipe.transformer.config.joint_attention_dim, pipe.transformer.config.pooled_projection_dim
    prompt = PromptEmbeds(
        torch.randn(1, 16, width, generator=seeded(seed)),
        torch.randn(1, pooled, generator=seeded(1)),
        torch.zeros(16, 3),
    )
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    return DenoisingStep(
        index=index,
        num_steps=2,
        branch=branch,
        timestep=torch.tensor([0.7]),
        latents=torch.randn(1, 6, 64, generator=seeded(2)),
        latent_ids=torch.stack([torch.zeros(6), rows.flatten(), columns.flatten()], dim=1),
        prompt=prompt,
        guidance=torch.ones(1),
    )


def stub(pipe):
    """What the protocol names, and nothing else."""
    names = [*Encoders.__annotations__, *(name for name in vars(Encoders) if not name.startswith("_"))]
    return SimpleNamespace(**{name: getattr(pipe, name, 1.0) for name in names})


class TestEncoders:
    @pytest.mark.parametrize("name", METHODS)
    def test_a_condition_asks_for_no_more_than_the_protocol_names(self, name):
        pipe, condition = pipeline_for(name), CASES[name].build()
        pipe._guidance_scale = 1.0
        canvas = canvas_of(pipe)
        with torch.no_grad():
            torch.manual_seed(0)
            expected = condition.encode(pipe, canvas)
            if getattr(condition, "generator", None) is not None:
                condition.generator.manual_seed(3)
            torch.manual_seed(0)
            encoded = CASES[name].build().encode(stub(pipe), canvas)
        assert encoded.keys() == expected.keys()
        assert all(encoded[key].shape == expected[key].shape for key in expected)

    @pytest.mark.parametrize("name", METHODS)
    def test_what_is_trained_is_reached_by_gradients(self, name):
        """The modules of a condition run in `prepare` or `contribute`; `encode` is cached without gradients."""
        pipe, condition = pipeline_for(name), CASES[name].build()
        pipe._guidance_scale = 1.0
        modules = {
            part.name: module
            for part in fields(condition)
            if isinstance(module := getattr(condition, part.name), torch.nn.Module) and part.name not in FROZEN
        }
        if not modules:
            return
        step = step_of(pipe)
        with torch.no_grad():
            encoded = [condition.encode(pipe, canvas_of(pipe))]
        parameters = [each for module in modules.values() for each in module.parameters()]
        before = [each.requires_grad for each in parameters]
        for each in parameters:
            each.requires_grad_(True)
        try:
            whole = EncodedConditions.from_tensors([condition], encoded)
            step = whole.with_prompt(step)
            with regional_attention(pipe.transformer):
                velocity = predict_velocity(pipe.transformer, step, whole.contributions(step))
            velocity.square().mean().backward()
            for part, module in modules.items():
                assert any(each.grad is not None and each.grad.abs().max() > 0 for each in module.parameters()), part
        finally:
            for each, needed in zip(parameters, before):
                each.grad = None
                each.requires_grad_(needed)


class TestReuse:
    def test_keys_say_how_long_a_contribution_holds(self, pipe):
        made = []

        @dataclass(frozen=True, eq=False)
        class Counting(FluxCondition):
            name: str
            key: object

            def reuse(self, step):
                return self.key(step)

            def contribute(self, encoded, step):
                made.append((self.name, step.branch, step.index))
                return Contribution()

        keys = {
            "branch": lambda step: step.branch,
            "step": lambda step: step.index,
            "never": lambda step: None,
            "phase": lambda step: (step.branch, step.index > 1),
        }
        conditions = [Counting(name, key) for name, key in keys.items()]
        pipe(**call_kwargs(conditions=conditions, negative_prompt="ugly", true_cfg_scale=2.0))
        steps = {name: [(branch, index) for own, branch, index in made if own == name] for name in keys}
        assert steps["branch"] == [("cond", 0), ("uncond", 0)]
        assert steps["step"] == [("cond", 0), ("cond", 1), ("cond", 2)]
        assert len(steps["never"]) == 6
        assert steps["phase"] == [("cond", 0), ("uncond", 0), ("cond", 2), ("uncond", 2)]

    def test_reuse_means_the_same_tensors_and_forgets_what_is_over(self, pipe):
        condition = CASES["entities"].build()
        encoded = EncodedConditions(pipe, [condition], canvas_of(pipe))
        first = encoded.contributions(step_of(pipe))[0]
        encoded.after_step(step_of(pipe), torch.zeros(1, 6, 64))
        again = encoded.contributions(step_of(pipe, index=1))[0]
        assert [group.hidden_states for group in first.text] == [group.hidden_states for group in again.text]
        encoded.after_step(step_of(pipe, index=1), torch.zeros(1, 6, 64))
        encoded.after_step(step_of(pipe, index=2), torch.zeros(1, 6, 64))
        assert encoded._kept == {}


class TestTwoOfOneClass:
    def test_two_sets_of_entities_are_one_set(self, pipe):
        prompts, masks = ["a cat", "a dog"], [LEFT, RIGHT]
        one = pipe(**call_kwargs(conditions=[EntityRegions(prompts, masks)])).images
        two = [EntityRegions([prompt], [mask]) for prompt, mask in zip(prompts, masks)]
        torch.testing.assert_close(pipe(**call_kwargs(conditions=two)).images, one, atol=1e-5, rtol=0)

    def test_two_redux_conditions_are_one_with_two_images(self, pipe):
        def draw(*groups):
            conditions = [ReduxImages(**redux_modules(), images=images) for images in groups]
            return pipe(**call_kwargs(conditions=conditions)).images

        together, apart = draw([picture(0), picture(1)]), draw(picture(0), picture(1))
        torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)

    def test_two_encoders_of_attributes(self, pipe):
        values = [AttributeValues(tiny_value_encoder(seed), {"brightness": 0.7}) for seed in (0, 1)]
        both = pipe(**call_kwargs(conditions=values)).images
        assert all(different(both, pipe(**call_kwargs(conditions=[each])).images) for each in values)

    def test_what_two_would_decide_is_refused(self):
        inpaint = InpaintRegion(torch.zeros(3, 32, 48), LEFT)
        assert inpaint.exclusive == OUTSIDE_OF_MASK
        with pytest.raises(ValueError, match="InpaintRegion and InpaintRegion decides the pixels outside"):
            check_conditions([inpaint, inpaint])


class TestDemand:
    @pytest.mark.parametrize("name", METHODS)
    def test_every_condition_says_what_it_costs(self, name):
        assert isinstance(CASES[name].build().demand(512), Demand)

    @pytest.mark.parametrize("name", METHODS)
    def test_the_demand_covers_the_tokens_that_are_added(self, name):
        pipe, condition = pipeline_for(name), CASES[name].build()
        pipe._guidance_scale = 1.0
        canvas, step = canvas_of(pipe), step_of(pipe)
        with torch.no_grad():
            encoded = EncodedConditions(pipe, [condition], canvas)
            step = encoded.with_prompt(step)
            [made] = encoded.contributions(step)
        demand = condition.demand(16)
        assert sum(group.length for group in made.text) <= demand.text_tokens + demand.appended_tokens
        reference = sum(group.length for group in made.reference)
        assert reference <= demand.reference_tokens + demand.canvases * canvas.num_tokens
        assert step.prompt.hidden_states.shape[1] <= max(16, demand.prompt_tokens)

    def test_a_subclass_and_a_users_condition_are_planned(self, pipe):
        class Regions(EntityRegions):
            pass

        class Tokens(FluxCondition):
            def contribute(self, encoded, step):
                return Contribution()

            def demand(self, prompt_tokens):
                return Demand(text_tokens=7)

        regions = Regions(["a", "b"], [LEFT, RIGHT])
        tokens = {
            kind: plan_vram(pipe, 1, 64, 64, conditions=conditions, max_sequence_length=16).workload.text_tokens
            for kind, conditions in {"none": [], "own": [Tokens()], "sub": [regions]}.items()
        }
        assert tokens == {"none": 16, "own": 23, "sub": 48}

    def test_an_unknown_cost_is_counted_with_a_warning(self, pipe, caplog):
        class Silent(FluxCondition):
            def contribute(self, encoded, step):
                return Contribution()

        logger = logging.getLogger("diffusers_flux_ext.offload.budget.demand")
        logger.addHandler(caplog.handler)
        plan = plan_vram(pipe, 1, 64, 64, conditions=[Silent()], max_sequence_length=16)
        logger.removeHandler(caplog.handler)
        assert plan.workload.text_tokens == 32
        assert "Silent does not say what it costs" in caplog.text


class TestFormerNames:
    @pytest.fixture(scope="class")
    def former(self):
        sys.modules.pop("tests.fixtures.former_condition", None)
        with pytest.warns(DeprecationWarning, match=r"Footnote defines \['per_step', 'once'\].*`reuse"):
            return importlib.import_module("tests.fixtures.former_condition")

    def test_a_condition_of_the_former_contract_runs(self, pipe, former):
        footnote = former.Footnote("a blue car")
        images = pipe(**call_kwargs(conditions=[footnote], negative_prompt="ugly", true_cfg_scale=2.0)).images
        assert different(images, pipe(**call_kwargs(negative_prompt="ugly", true_cfg_scale=2.0)).images, 1e-3)
        with pytest.raises(ValueError, match="Footnote and Footnote"):
            check_conditions([footnote, footnote])

    def test_former_names_mean_what_they_meant(self, pipe, former):
        step, later = step_of(pipe), step_of(pipe, "uncond", 1)
        assert former.Footnote("x").reuse(step) is None
        assert former.Shared().reuse(later) == 1
        assert former.Shared().exclusive == OUTSIDE_OF_MASK
        assert [former.Phased().reuse(each) for each in (step, later)] == [("cond", False), ("uncond", True)]

    def test_the_new_contract_warns_of_nothing(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")

            class New(FluxCondition):
                def contribute(self, encoded, step):
                    return Contribution()

            assert New().exclusive is None
