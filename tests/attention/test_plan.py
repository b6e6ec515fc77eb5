"""Attention plans equal masked attention for every set of rules."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_flux_ext import AttentionRule, build_attention_plan
from diffusers_flux_ext.attention import plan as plans
from diffusers_flux_ext.methods.eligen.condition import entity_rules
from diffusers_flux_ext.sequence import JointLayout


def masked(query, key, value, mask=None):
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)


def dense_mask(layout: JointLayout, rules: list[AttentionRule]) -> torch.Tensor:
    """Rules expanded one by one, straight from their definition."""
    from fnmatch import fnmatchcase

    mask = torch.ones(layout.batch_size, layout.total, layout.total, dtype=torch.bool)
    spans = {}
    for name, kind, offset, length in zip(layout.names, layout.kinds, layout.offsets, layout.lengths):
        spans[name] = (kind, slice(offset, offset + length))

    def matches(pattern, name):
        return fnmatchcase(f"{spans[name][0]}/{name}" if "/" in pattern else name, pattern)

    for rule in rules:
        glob = any(c in rule.query + rule.key for c in "*?[")
        for query in layout.names:
            for key in layout.names:
                if matches(rule.query, query) and matches(rule.key, key) and not (glob and query == key):
                    mask[:, spans[query][1], spans[key][1]] &= torch.as_tensor(rule.allow)
    return mask[:, None]


def execute(plan, layout, tensors):
    """Sort as the plan says, attend, and undo the sorting."""
    if plan is None:
        return masked(*tensors)
    if plan.mask is not None:
        return masked(*tensors, plan.mask)
    text = torch.arange(layout.num_text_tokens) if plan.text_order is None else plan.text_order
    image_length = layout.total - layout.num_text_tokens
    image = torch.arange(image_length) if plan.image_order is None else plan.image_order
    order = torch.cat([text, layout.num_text_tokens + image])
    return plan.attend(*(tensor[:, order] for tensor in tensors), masked)[:, order.argsort()]


def qkv(layout, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(layout.batch_size, layout.total, 2, 8, generator=generator) for _ in range(3)]


def assert_plan_equals_mask(layout, rules):
    tensors = qkv(layout)
    expected = masked(*tensors, dense_mask(layout, rules)).nan_to_num(0.0)
    for supports in ({"mask_supported": False}, {"classes_supported": False}, {}):
        actual = execute(build_attention_plan(layout, rules, **supports), layout, tensors)
        torch.testing.assert_close(actual.nan_to_num(0.0), expected, atol=1e-6, rtol=1e-5)


@st.composite
def layouts_and_rules(draw):
    texts = draw(st.integers(1, 4))
    references = draw(st.integers(0, 2))
    batch_size = draw(st.integers(1, 3))
    names = [*(f"entity_{i}" for i in range(texts - 1)), "prompt", "target"]
    names += [f"reference_{i}" for i in range(references)]
    kinds = ["text"] * texts + ["target"] + ["reference"] * references
    lengths = [draw(st.integers(1, 6)) for _ in names]
    layout = JointLayout(tuple(names), tuple(kinds), tuple(lengths), batch_size)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rules = []
    for _ in range(draw(st.integers(0, 8))):
        patterns = [*names, "entity_*", "text/*", "reference/*", "*"]
        query, key = draw(st.sampled_from(patterns)), draw(st.sampled_from(patterns))
        if query in names and key in names:
            full = (batch_size, lengths[names.index(query)], lengths[names.index(key)])
            shape = tuple(size if draw(st.booleans()) else 1 for size in full)
            probability = draw(st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
            rules.append(AttentionRule(query, key, torch.rand(shape, generator=generator) < probability))
        else:
            rules.append(AttentionRule(query, key, draw(st.booleans())))
    return layout, rules


@settings(max_examples=150, deadline=None)
@given(layouts_and_rules())
def test_any_rule_set_equals_masked_attention(case):
    assert_plan_equals_mask(*case)


def eligen_layout(masks, batch_size=1, references=0, text_length=5):
    entities = masks.shape[1]
    names = [*(f"entity_{i}" for i in range(entities)), "prompt", "target", *(f"ref_{i}" for i in range(references))]
    kinds = ["text"] * (entities + 1) + ["target"] + ["reference"] * references
    lengths = [text_length] * (entities + 1) + [masks.shape[2]] + [4] * references
    return JointLayout(tuple(names), tuple(kinds), tuple(lengths), batch_size)


@pytest.mark.parametrize(
    "masks",
    [
        torch.zeros(1, 2, 16, dtype=torch.bool),
        torch.ones(1, 2, 16, dtype=torch.bool),
        torch.tensor([[[True] + [False] * 15, [False] * 15 + [True]]]),
        torch.arange(16).view(1, 1, 16).expand(1, 2, 16) < torch.tensor([10, 6]).view(1, 2, 1),
        torch.rand(3, 4, 16, generator=torch.Generator().manual_seed(1)) > 0.5,
    ],
    ids=["empty", "full", "one token", "overlapping", "per sample"],
)
@pytest.mark.parametrize("references", [0, 2])
def test_entity_regions_equal_masked_attention(masks, references):
    layout = eligen_layout(
        masks, batch_size=max(masks.shape[0], 2) if masks.shape[0] > 1 else 2, references=references
    )
    layout = JointLayout(layout.names, layout.kinds, layout.lengths, masks.shape[0] if masks.shape[0] > 1 else 2)
    rules = [rule for i in range(masks.shape[1]) for rule in entity_rules(f"entity_{i}", masks[:, i])]
    assert_plan_equals_mask(layout, rules)


def test_rules_that_hide_nothing_need_no_plan():
    layout = eligen_layout(torch.ones(1, 1, 4, dtype=torch.bool))
    assert build_attention_plan(layout, []) is None
    assert build_attention_plan(layout, [AttentionRule("prompt", "target", True)]) is None


def test_a_token_that_sees_nothing_gets_zeros():
    layout = JointLayout(("prompt", "target"), ("text", "target"), (2, 3), 1)
    rules = [AttentionRule("prompt", "target", False), AttentionRule("prompt", "prompt", False)]
    tensors = qkv(layout)
    output = execute(build_attention_plan(layout, rules, mask_supported=False), layout, tensors)
    assert torch.equal(output[:, :2], torch.zeros_like(output[:, :2]))


def test_the_cost_model_chooses_classes_for_large_and_masks_for_small_inputs():
    big = torch.zeros(1, 3, 1024, dtype=torch.bool)
    for index in range(3):
        big[0, index, 300 * index : 300 * index + 200] = True
    rules = [rule for i in range(3) for rule in entity_rules(f"entity_{i}", big[:, i])]
    assert build_attention_plan(eligen_layout(big, text_length=512), rules).classes
    small = torch.rand(1, 8, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    rules = [rule for i in range(8) for rule in entity_rules(f"entity_{i}", small[:, i])]
    assert build_attention_plan(eligen_layout(small, text_length=2), rules).mask is not None


def test_no_table_over_all_pairs_is_made(monkeypatch):
    masks = torch.zeros(1, 2, 4096, dtype=torch.bool)
    masks[0, 0, :1000] = masks[0, 1, 800:2000] = True
    layout = eligen_layout(masks, text_length=512)
    rules = [rule for i in range(2) for rule in entity_rules(f"entity_{i}", masks[:, i])]
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, (list, tuple)) else [output]:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() > largest:
                    largest = tensor.untyped_storage().nbytes()
            return output

    with Watch():
        plan = build_attention_plan(layout, rules)
    assert plan.classes
    assert largest < layout.total * 64


def test_samples_with_equal_tables_share_one_plan():
    masks = (torch.rand(1, 2, 300, generator=torch.Generator().manual_seed(3)) > 0.5).repeat(4, 1, 1)
    layout = eligen_layout(masks, batch_size=4, text_length=200)
    rules = [rule for i in range(2) for rule in entity_rules(f"entity_{i}", masks[:, i])]
    plan = build_attention_plan(layout, rules, mask_supported=False)
    assert plan.classes
    assert not plan.samples


@pytest.mark.parametrize(
    "rule, message",
    [
        (AttentionRule("entity_7", "target", False), "entity_7.*does not exist"),
        (AttentionRule("prompt", "target", torch.ones(1, 5, 9, dtype=torch.bool)), r"\(1, 5, 9\).*\(1, 5, 4\)"),
        (AttentionRule("prompt", "target", torch.ones(1, 5, 4)), "boolean"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rule, message):
    layout = eligen_layout(torch.ones(1, 1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        build_attention_plan(layout, [rule])


def test_without_any_way_to_execute_rules_there_is_an_error():
    layout = eligen_layout(torch.ones(1, 1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="FluxRegionalAttnProcessor"):
        build_attention_plan(
            layout, [AttentionRule("prompt", "target", False)], classes_supported=False, mask_supported=False
        )


def test_names_must_be_unique():
    with pytest.raises(ValueError, match="entity_0.*more than once"):
        JointLayout(("entity_0", "entity_0", "target"), ("text", "text", "target"), (1, 1, 1), 1)


def test_class_cost_counts_pairs_and_copies():
    assert plans.AttentionClass(((0, 4),), ((0, 10),)).cost == 40
    assert plans.AttentionClass(((0, 4),), ((0, 5), (6, 11))).cost == 40 + plans.COPIED_TOKEN_COST * 20
