"""Rates and weight decays by name."""

import pytest
import torch

from diffusers_flux_ext.training.optim import GroupRule, parameter_groups


NAMES = [
    "blocks.0.attn.lora_A.default.weight",
    "blocks.0.attn.lora_B.default.weight",
    "blocks.1.attn.lora_A.default.weight",
    "blocks.1.attn.lora_B.default.weight",
    "norm.bias",
]


def parameters() -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in NAMES}


def rates(**options: object) -> dict[str, tuple[float, float]]:
    """Return the rate and the decay of every name."""
    named = parameters()
    groups = parameter_groups(named, 1e-4, 0.01, **options)
    found = {}
    for group in groups:
        assert group["peak_lr"] == group["lr"]
        for name, parameter in named.items():
            if any(parameter is each for each in group["params"]):
                assert name not in found
                found[name] = (group["lr"], group["weight_decay"])
    assert found.keys() == named.keys()
    return found


def test_without_rules_there_is_one_group() -> None:
    assert set(rates().values()) == {(1e-4, 0.01)}


def test_the_first_rule_that_fits_counts() -> None:
    rules = [GroupRule(r"blocks\.1\.", lr=1e-5), GroupRule(r"blocks|bias", weight_decay=0)]
    found = rates(rules=rules)
    assert [found[name] for name in NAMES] == [(1e-4, 0)] * 2 + [(1e-5, 0.01)] * 2 + [(1e-4, 0)]


def test_lora_plus_raises_the_rate_of_the_second_matrices() -> None:
    found = rates(lora_plus=16.0, rules=[GroupRule(r"blocks\.1\.", lr=1e-5)])
    expected = [1e-4, 16e-4, 1e-5, 16e-5, 1e-4]
    assert [found[name][0] for name in NAMES] == pytest.approx(expected)


def test_rules_that_concern_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"for the patterns \['block_2'\]: .* `norm.bias`"):
        rates(rules=[GroupRule("block_2", lr=1e-5)])
    with pytest.raises(ValueError, match=r"\['attn'\].*earlier rule"):
        rates(rules=[GroupRule("blocks", lr=1e-5), GroupRule("attn", lr=1e-5)])
    with pytest.raises(ValueError, match="`lora_plus` 4.0 is the ratio"):
        parameter_groups({"weight": torch.nn.Parameter(torch.zeros(1))}, 1e-4, 0, lora_plus=4.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pattern": "(", "lr": 1.0}, "not a regular expression"),
        ({"pattern": "a"}, "changes nothing"),
        ({"pattern": "a", "lr": -1.0}, "`lr` of the rule for 'a' must be at least 0"),
        ({"pattern": "a", "weight_decay": float("nan")}, "`weight_decay` of the rule"),
    ],
)
def test_wrong_rules_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupRule(**options)
