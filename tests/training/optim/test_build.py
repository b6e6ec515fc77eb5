"""Optimizers by name: each learns, keeps its state, and names what is missing before training."""

import importlib.util
import json
import sys
import warnings

import pytest
import torch

from diffusers_flux_ext.training.checkpoint import pack_state, unpack_state
from diffusers_flux_ext.training.optim import (
    GroupRule,
    OptimizerSettings,
    averaged_weights,
    build_optimizer,
    check_optimizer,
    clip_gradients,
)
from diffusers_flux_ext.training.optim.kinds import KINDS


RATES = {"prodigy": 1.0, "schedule_free": 3e-2, "lion": 3e-3}
# From its own first guess of the rate, 1e-6, it takes long to find one.
OPTIONS = {"prodigy": {"d0": 1e-4}}


def needs(name: str) -> None:
    module = KINDS[name].path.partition(".")[0] if name in KINDS else name.partition(".")[0]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")


def tiny_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.ModuleDict({"block": torch.nn.Linear(8, 8), "norm": torch.nn.LayerNorm(8)})


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    return (model["norm"](model["block"](inputs)) - inputs.flip(1)).pow(2).mean()


def train(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], updates: int) -> None:
    for _ in range(updates):
        loss_of(model).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def settings(name: str, **options: object) -> OptimizerSettings:
    return OptimizerSettings(
        name, lr=RATES.get(name, 1e-2), weight_decay=1e-3, **{"options": OPTIONS.get(name, {}), **options}
    )


def through_a_checkpoint(state: dict) -> dict:
    """Return a state as a checkpoint gives it back."""
    tensors: dict[str, torch.Tensor] = {}
    tree = json.loads(json.dumps(pack_state(state, tensors, "0")))
    return unpack_state(tree, tensors)


@pytest.mark.parametrize("name", [*KINDS, "torch.optim.NAdam"])
def test_every_optimizer_learns(name: str) -> None:
    needs(name)
    model = tiny_model()
    optimizers = build_optimizer(model.named_parameters(), settings(name))
    assert len(optimizers) == (2 if name == "muon" else 1)
    before = loss_of(model).item()
    train(model, optimizers, 60)
    with averaged_weights(optimizers):
        assert loss_of(model).item() < 0.7 * before


@pytest.mark.parametrize("name", KINDS)
def test_a_state_that_is_taken_over_continues_the_run(name: str) -> None:
    needs(name)
    model, other = tiny_model(), tiny_model()
    optimizers = build_optimizer(model.named_parameters(), settings(name))
    train(model, optimizers, 3)
    others = build_optimizer(other.named_parameters(), settings(name))
    other.load_state_dict(model.state_dict())
    for old, new in zip(optimizers, others):
        new.load_state_dict(through_a_checkpoint(old.state_dict()))
    train(model, optimizers, 3)
    train(other, others, 3)
    for one, two in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(one, two)


def test_muon_steps_matrices_and_adamw_the_rest() -> None:
    needs("muon")
    named = {
        "transformer_blocks.0.attn.to_q.weight": (8, 8),
        "transformer_blocks.0.norm1.linear.weight": (8, 8),
        "single_transformer_blocks.0.proj_out.weight": (8, 8),
        "x_embedder.weight": (8, 8),
        "proj_out.weight": (8, 8),
        "transformer_blocks.0.attn.to_q.bias": (8,),
    }
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in named.items()}
    matrices, rest = build_optimizer(parameters, settings("muon", groups=[GroupRule("to_q", weight_decay=0)]))
    assert matrices.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    names = {parameter: name for name, parameter in parameters.items()}
    found = {names[parameter] for group in matrices.param_groups for parameter in group["params"]}
    assert found == {"transformer_blocks.0.attn.to_q.weight", "single_transformer_blocks.0.proj_out.weight"}
    assert sum(len(group["params"]) for group in rest.param_groups) == 4
    assert {group["weight_decay"] for group in rest.param_groups} == {0, 1e-3}
    with pytest.raises(ValueError, match="Muon steps matrices"):
        build_optimizer({"bias": parameters["transformer_blocks.0.attn.to_q.bias"]}, settings("muon"))


def test_options_reach_the_optimizer() -> None:
    model = tiny_model()
    (optimizer,) = build_optimizer(model.named_parameters(), settings("adamw", options={"betas": (0.8, 0.9)}))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_frozen_parameters_are_left_out() -> None:
    model = tiny_model()
    model["norm"].requires_grad_(False)
    (optimizer,) = build_optimizer(model.named_parameters(), settings("adamw"))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(model.named_parameters(), settings("adamw"))


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    with pytest.raises(ImportError, match="`pip install lion-pytorch`"):
        check_optimizer(settings("lion"))
    with pytest.raises(ImportError, match="`pip install no_such_package`"):
        check_optimizer(settings("no_such_package.Optimizer"))


def test_an_old_torch_without_muon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ImportError, match="pip install --upgrade 'torch>=2.9'"):
        check_optimizer(settings("muon"))


def test_a_rate_other_than_one_is_warned_of_where_the_optimizer_finds_it() -> None:
    needs("prodigy")
    with pytest.warns(UserWarning, match="1 is usual, got 0.0001"):
        check_optimizer(OptimizerSettings("prodigy", lr=1e-4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_optimizer(OptimizerSettings("prodigy", lr=1.0))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("adamw_8bit", {}, "did you mean 'adamw8bit'"),
        ("adamw", {"options": {"beta": 0.9}}, "did you mean 'betas'"),
        ("adamw", {"options": {"lr": 1.0}}, "`lr` is not an option"),
        ("torch.nn.Linear", {}, "is not an optimizer"),
        ("torch.optim.AdamX", {}, "is not an optimizer"),
        ("adamw", {"lr": 0}, "`lr` must be a number above 0"),
        ("adamw", {"weight_decay": -1}, "`weight_decay` must be a number of at least 0"),
        ("adamw", {"lora_plus": 0}, "`lora_plus` must be a number above 0"),
        ("adamw", {"rounding": "stochastc"}, "did you mean 'stochastic'"),
        ("prodigy", {"lr": 1.0, "lora_plus": 4.0}, "one learning rate for all parameters, so `lora_plus`"),
        ("prodigy", {"lr": 1.0, "groups": [GroupRule("a", lr=0.5)]}, r"so the patterns \['a'\]"),
        ("schedule_free", {"rounding": "stochastic"}, "'masters' or 'kahan'"),
    ],
)
def test_wrong_settings_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_optimizer(OptimizerSettings(name, **options))


def test_gradients_are_clipped_to_their_common_norm() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert float(clip_gradients(parameters, None)) == 5
    assert parameters[0].grad.tolist() == [3, 0]
    assert float(clip_gradients(parameters, 1.0)) == 5
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.0, 0.8]))
    with pytest.raises(ValueError, match="`max_norm` must be above 0"):
        clip_gradients(parameters, 0.0)
