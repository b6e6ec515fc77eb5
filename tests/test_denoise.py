"""`predict_velocity`: execution paths agree, contributions are placed right, and misfits are refused."""

import pytest
import torch

from diffusers_flux_ext import (
    AttentionRule,
    Contribution,
    DenoisingStep,
    PlanCache,
    PromptEmbeds,
    TokenGroup,
    predict_velocity,
    regional_attention,
)
from diffusers_flux_ext.attention.processor import runs_attention_plans
from diffusers_flux_ext.methods.eligen.condition import entity_rules
from diffusers_flux_ext.testing import seeded, tiny_transformer


BATCH, TEXT, ROWS, COLUMNS = 2, 7, 4, 5
# Compiling takes seconds for each: the last single block is a kind of its own.
ONE_OF_EACH = {"num_layers": 1, "num_single_layers": 2}


def make_step(**overrides):
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(ROWS).float(), torch.arange(COLUMNS).float())
    state = {
        "index": 0,
        "num_steps": 1,
        "branch": "cond",
        "timestep": torch.full((BATCH,), 0.6),
        "latents": torch.randn(BATCH, ROWS * COLUMNS, 64, generator=seeded(1)),
        "latent_ids": ids,
        "prompt": PromptEmbeds(
            torch.randn(BATCH, TEXT, 40, generator=seeded(2)),
            torch.randn(BATCH, 24, generator=seeded(3)),
            torch.zeros(TEXT, 3),
        ),
        "guidance": torch.full((BATCH,), 3.5),
    }
    return DenoisingStep(**{**state, **overrides})


def entities(per_sample=False, references=0, seed=4):
    masks = torch.rand(BATCH if per_sample else 1, 3, ROWS * COLUMNS, generator=seeded(seed)) > 0.5
    texts = [
        TokenGroup(f"entity_{i}", torch.randn(1, 4 + i, 40, generator=seeded(5 + i)), torch.zeros(4 + i, 3))
        for i in range(3)
    ]
    rules = [rule for i in range(3) for rule in entity_rules(f"entity_{i}", masks[:, i])]
    refs = [
        TokenGroup(f"reference_{i}", torch.randn(1, 6, 64, generator=seeded(20 + i)), torch.ones(6, 3) * i)
        for i in range(references)
    ]
    residuals = [torch.randn(BATCH, ROWS * COLUMNS, 32, generator=seeded(30 + i)) for i in range(2)]
    return Contribution(
        text=texts, rules=rules, reference=refs, block_residuals=residuals[:1], single_block_residuals=residuals
    )


def stock_call(transformer, step, **residuals):
    """The transformer called as diffusers' pipelines call it."""
    return transformer(
        hidden_states=step.latents,
        timestep=step.timestep,
        guidance=step.guidance,
        pooled_projections=step.prompt.pooled,
        encoder_hidden_states=step.prompt.hidden_states,
        txt_ids=step.prompt.ids,
        img_ids=step.latent_ids,
        return_dict=False,
        **residuals,
    )[0]


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer(0)


@pytest.fixture
def classes_always(monkeypatch):
    monkeypatch.setattr("diffusers_flux_ext.attention.plan._masking_is_cheaper", lambda *args: False)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("fused", [False, True])
def test_classes_equal_the_mask(classes_always, per_sample, references, fused):
    transformer = tiny_transformer(0)
    contribution = entities(per_sample, references)
    if fused:
        transformer.fuse_qkv_projections()
    with torch.no_grad():
        masked = predict_velocity(transformer, make_step(), [contribution])
        with regional_attention(transformer):
            classes = predict_velocity(transformer, make_step(), [contribution])
    torch.testing.assert_close(classes, masked, atol=2e-5, rtol=1e-4)
    assert classes.shape == (BATCH, ROWS * COLUMNS, 64)


def test_without_contributions_it_is_the_transformers_call(transformer):
    step = make_step()
    with torch.no_grad():
        expected = stock_call(transformer, step)
        assert torch.equal(predict_velocity(transformer, step, []), expected)
        with regional_attention(transformer):
            assert torch.equal(predict_velocity(transformer, step, [Contribution()]), expected)


def test_residuals_are_those_of_the_stock_argument(transformer):
    step, contribution = make_step(), entities()
    only = Contribution(
        block_residuals=contribution.block_residuals, single_block_residuals=contribution.single_block_residuals
    )
    with torch.no_grad():
        expected = stock_call(
            transformer,
            step,
            controlnet_block_samples=list(only.block_residuals),
            controlnet_single_block_samples=list(only.single_block_residuals),
        )
        assert torch.equal(predict_velocity(transformer, step, [only]), expected)


def test_residuals_of_several_conditions_are_summed(transformer):
    residuals = [torch.randn(BATCH, ROWS * COLUMNS, 32, generator=seeded(i)) for i in range(5)]
    one = Contribution(single_block_residuals=residuals[:2])
    other = Contribution(single_block_residuals=residuals[2:])
    # Three single blocks: the first condition's two residuals serve blocks 0 and 1, and block 2.
    joint = [residuals[0] + residuals[2], residuals[0] + residuals[3], residuals[1] + residuals[4]]
    with torch.no_grad():
        actual = predict_velocity(transformer, make_step(), [one, other])
        expected = predict_velocity(transformer, make_step(), [Contribution(single_block_residuals=joint)])
    torch.testing.assert_close(actual, expected)


def test_order_of_conditions_does_not_matter(transformer):
    parts = [
        entities(),
        Contribution(reference=[TokenGroup("picture", torch.randn(1, 6, 64, generator=seeded(9)), torch.ones(6, 3))]),
    ]
    with torch.no_grad():
        results = [predict_velocity(transformer, make_step(), order) for order in (parts, parts[::-1])]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_agree_with_the_masked_path(classes_always, checkpointing):
    gradients = []
    for regional in (False, True):
        transformer = tiny_transformer(0).train().requires_grad_(True)
        if checkpointing:
            transformer.enable_gradient_checkpointing()

        def loss(transformer=transformer):
            return predict_velocity(transformer, make_step(), [entities()]).square().mean()

        if regional:
            with regional_attention(transformer):
                loss().backward()
        else:
            loss().backward()
        gradients.append(
            {name: weight.grad for name, weight in transformer.named_parameters() if weight.grad is not None}
        )
    assert gradients[0].keys() <= gradients[1].keys() | gradients[0].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1].get(name, torch.zeros_like(gradient)), gradient, atol=1e-5, rtol=1e-3)


def test_bfloat16_is_finite(classes_always):
    transformer = tiny_transformer(0).to(torch.bfloat16)
    step = make_step()
    prompt = PromptEmbeds(step.prompt.hidden_states.bfloat16(), step.prompt.pooled.bfloat16(), step.prompt.ids)
    step = make_step(latents=step.latents.bfloat16(), prompt=prompt)
    given = entities()
    text = [TokenGroup(g.name, g.hidden_states.bfloat16(), g.ids) for g in given.text]
    with torch.no_grad(), regional_attention(transformer):
        velocity = predict_velocity(transformer, step, [Contribution(text=text, rules=given.rules)])
    assert torch.isfinite(velocity.float()).all()


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_backend_that_refuses_masks_runs_rules(per_sample):
    transformer = tiny_transformer(0)
    contribution = entities(per_sample)
    with torch.no_grad():
        expected = predict_velocity(transformer, make_step(), [contribution])
        transformer.set_attention_backend("_native_flash")
        try:
            with pytest.raises(ValueError, match="FluxRegionalAttnProcessor"):
                predict_velocity(transformer, make_step(), [contribution])
            with regional_attention(transformer):
                actual = predict_velocity(transformer, make_step(), [contribution])
        finally:
            transformer.reset_attention_backend()
            transformer.set_attention_backend("native")
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_blocks_do_not_recompile_per_step(classes_always):
    torch._dynamo.reset()
    transformer = tiny_transformer(0, **ONE_OF_EACH)
    contribution, cache = entities(), PlanCache()
    with torch.no_grad(), regional_attention(transformer):
        expected = predict_velocity(transformer, make_step(), [contribution])
        compiles = []
        backend = lambda graph, inputs: compiles.append(1) or graph.forward  # noqa: E731
        transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
        for index in range(4):
            step = make_step(index=index, timestep=torch.full((BATCH,), 0.6))
            actual = predict_velocity(transformer, step, [contribution], cache)
            if index == 0:
                first = len(compiles)
    torch._dynamo.reset()
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
    assert first > 0
    assert len(compiles) == first


@pytest.mark.slow
def test_compiled_blocks_are_not_compiled_again_for_every_set_of_regions(classes_always):
    torch._dynamo.reset()
    transformer, reference = tiny_transformer(0, **ONE_OF_EACH), tiny_transformer(0, **ONE_OF_EACH)
    compiles = []
    backend = lambda graph, inputs: compiles.append(1) or graph.forward  # noqa: E731
    counts = []
    with torch.no_grad(), regional_attention(transformer):
        transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
        for seed in range(12):
            contribution = entities(seed=seed)
            actual = predict_velocity(transformer, make_step(), [contribution])
            expected = predict_velocity(reference, make_step(), [contribution])
            torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)
            counts.append(len(compiles))
    torch._dynamo.reset()
    assert counts[0] > 0
    # The number of runs may become dynamic once; after that nothing is compiled again.
    assert counts[-1] == counts[2]


def test_plans_are_built_once_per_branch(transformer, monkeypatch):
    import diffusers_flux_ext.denoise as denoise

    built = []
    build = denoise.build_attention_plan
    monkeypatch.setattr(denoise, "build_attention_plan", lambda *a, **k: built.append(1) or build(*a, **k))
    contribution, cache = entities(), PlanCache()
    with torch.no_grad():
        for branch in ("cond", "uncond") * 3:
            predict_velocity(transformer, make_step(branch=branch), [contribution], cache)
        assert len(built) == 2
        predict_velocity(transformer, make_step(), [entities()], cache)
    assert len(built) == 3


def group(name="value", shape=(1, 3, 40), dtype=torch.float32):
    return TokenGroup(name, torch.zeros(shape, dtype=dtype), torch.zeros(shape[1], 3))


BAD = {
    "channels": (Contribution(channels=[torch.zeros(1, ROWS * COLUMNS, 8)]), "64 channels.*add \\[8\\], 72 in all"),
    "channel length": (Contribution(channels=[torch.zeros(1, 3, 8)]), r"channels 0 have the shape \(1, 3, 8\)"),
    "text width": (Contribution(text=[group(shape=(1, 3, 41))]), r"'value' have the shape \(1, 3, 41\)"),
    "batch": (Contribution(text=[group(shape=(3, 3, 40))]), "expected .'1 or 2'"),
    "dtype": (Contribution(text=[group(dtype=torch.bfloat16)]), "bfloat16.*float32.*Move"),
    "ids": (
        Contribution(text=[TokenGroup("value", torch.zeros(1, 3, 40), torch.zeros(4, 3))]),
        r"ids must have.*\(3, 3\)",
    ),
    "twice": (Contribution(text=[group(), group()]), "value.*more than once"),
    "residual length": (Contribution(block_residuals=[torch.zeros(BATCH, 3, 32)]), r"block residuals.*\(2, 3, 32\)"),
    "residual dtype": (
        Contribution(single_block_residuals=[torch.zeros(BATCH, ROWS * COLUMNS, 32, dtype=torch.float64)]),
        "block residuals are torch.float64",
    ),
    "prompt": (Contribution(text=[group("prompt")]), "prompt.*more than once"),
    "no group": (Contribution(rules=[AttentionRule("entity_0", "target", False)]), "entity_0"),
    "mask": (
        Contribution(
            rules=[AttentionRule("prompt", "target", torch.zeros(1, 1, 9, dtype=torch.bool))],
            attention_kwargs={},
        ),
        r"\(1, 1, 9\)",
    ),
    "kwargs": (
        Contribution(
            rules=[AttentionRule("prompt", "target", False)], attention_kwargs={"attention_mask": torch.ones(1)}
        ),
        "attention_mask",
    ),
}


@pytest.mark.parametrize("contribution, message", BAD.values(), ids=BAD)
def test_misfits_are_refused(transformer, contribution, message):
    with pytest.raises(ValueError, match=message):
        predict_velocity(transformer, make_step(), [contribution])


def test_attention_arguments_of_two_conditions_clash(transformer):
    parts = [Contribution(attention_kwargs={"scale": 1.0}), Contribution(attention_kwargs={"scale": 0.5})]
    with pytest.raises(ValueError, match="scale"):
        predict_velocity(transformer, make_step(), parts)


def test_a_plan_cache_notices_what_the_processors_can_run(classes_always, transformer):
    contribution, cache = entities(), PlanCache()
    with torch.no_grad():
        with regional_attention(transformer):
            inside = predict_velocity(transformer, make_step(), [contribution], cache)
        outside = predict_velocity(transformer, make_step(), [contribution], cache)
    torch.testing.assert_close(inside, outside, atol=2e-5, rtol=1e-4)


def test_overlapping_contexts_keep_the_processors_until_the_last_one_ends(transformer):
    before = dict(transformer.attn_processors)
    first, second = regional_attention(transformer), regional_attention(transformer)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert runs_attention_plans(transformer)
    second.__exit__(None, None, None)
    assert all(after is before[name] for name, after in transformer.attn_processors.items())


def test_processors_are_restored_even_after_an_error(transformer):
    before = dict(transformer.attn_processors)

    def fail():
        with regional_attention(transformer):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(after is before[name] for name, after in transformer.attn_processors.items())
