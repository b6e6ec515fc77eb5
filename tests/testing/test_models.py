"""Models that are copied instead of built again share nothing, and are what building gives."""

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from diffusers_flux_ext.testing import copy_model, make_model, randomise, tiny_components
from diffusers_flux_ext.testing.components import TRANSFORMER


MODELS = ("vae", "text_encoder", "text_encoder_2", "transformer")


def containers(model):
    """Every container and tensor that the modules of a model hold, by identity."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return {id(value) for value in values if isinstance(value, dict | list | set)} | {
        id(tensor) for tensor in (*model.parameters(), *model.buffers())
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_what_deepcopy_gives(name):
    model = tiny_components()[name]
    ours, theirs = copy_model(model), copy.deepcopy(model)
    assert [(key, type(part)) for key, part in ours.named_modules()] == [
        (key, type(part)) for key, part in theirs.named_modules()
    ]
    for part, other in zip(ours.modules(), theirs.modules(), strict=True):
        assert [(key, type(value)) for key, value in vars(part).items()] == [
            (key, type(value)) for key, value in vars(other).items()
        ]
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    assert [part.requires_grad for part in ours.parameters()] == [part.requires_grad for part in theirs.parameters()]
    assert dict(ours.config.items() if name in ("vae", "transformer") else ours.config.to_dict().items()) == dict(
        theirs.config.items() if name in ("vae", "transformer") else theirs.config.to_dict().items()
    )


@pytest.mark.parametrize("name", MODELS)
def test_what_is_done_to_one_is_not_seen_by_the_next(name):
    changed, untouched = tiny_components()[name], tiny_components()[name]
    assert not containers(changed) & containers(untouched)
    for module in changed.modules():
        module.register_forward_hook(lambda *args: None)
        module.mark = 1
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    changed.config.mark = 1
    again = tiny_components()[name]
    assert not any(module._forward_hooks or hasattr(module, "mark") for module in again.modules())
    assert not hasattr(again.config, "mark")
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), untouched.parameters(), strict=True))


def test_a_model_is_what_building_it_gives():
    built = randomise(FluxTransformer2DModel(**TRANSFORMER), 3)
    for _ in range(2):
        made = make_model(FluxTransformer2DModel, TRANSFORMER, 3)
        assert all(torch.equal(value, made.state_dict()[key]) for key, value in built.state_dict().items())
        assert made.config == built.config


def test_lists_and_tuples_of_a_config_stay_apart():
    for axes in ([4, 6, 6], (4, 6, 6)):
        model = make_model(FluxTransformer2DModel, {**TRANSFORMER, "axes_dims_rope": axes})
        assert model.config.axes_dims_rope == axes


class Tied(nn.Module):
    def __init__(self, size, norm=None):
        super().__init__()
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)
        self.second.weight = self.first.weight
        self.norm, self.again = norm, self.first


def test_what_is_one_object_stays_one():
    model = make_model(Tied, {"size": 4})
    assert model.second.weight is model.first.weight
    assert model.again is model.first
    assert model.norm is None


def test_a_config_of_objects_is_built_each_time():
    norm = nn.LayerNorm(4)
    assert make_model(Tied, {"size": 4, "norm": norm}).norm is norm
