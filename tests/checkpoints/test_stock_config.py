"""A config keeps its values between diffusers' classes and their subclasses, whatever the defaults of either."""

import inspect
import json

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxControlNetModel, FluxTransformer2DModel

from diffusers_flux_ext import (
    AutoencoderKLFlux,
    FluxExtControlNetModel,
    FluxExtTransformer2DModel,
    FluxFlowMatchScheduler,
)


PAIRS = {
    "vae": (AutoencoderKL, AutoencoderKLFlux),
    "scheduler": (FlowMatchEulerDiscreteScheduler, FluxFlowMatchScheduler),
    "transformer": (FluxTransformer2DModel, FluxExtTransformer2DModel),
    "controlnet": (FluxControlNetModel, FluxExtControlNetModel),
}
# Some values of each class besides its defaults, which keep it small.
GIVEN = {"vae": {"norm_num_groups": 16}, "scheduler": {"max_shift": 1.3}}
SHALLOW = {"num_layers": 1, "num_single_layers": 0}


def place(name):
    """Models of released size have no weights here; a scheduler reads its own tensors."""
    return torch.device("cpu" if name == "scheduler" else "meta")


def values(config, other):
    """What a config says of the arguments that both classes have; lists and tuples are one in JSON."""
    names = inspect.signature(other.__init__).parameters.keys() & config.keys()
    return json.loads(json.dumps({name: config[name] for name in names}, default=str, sort_keys=True))


@pytest.mark.parametrize("defaults", [True, False])
@pytest.mark.parametrize("direction", [1, -1], ids=["to ours", "to stock"])
@pytest.mark.parametrize("name", PAIRS)
def test_values_stay(name, direction, defaults):
    source, target = PAIRS[name][::direction]
    given = {} if defaults else GIVEN.get(name, {})
    with place(name):
        made = source(**given, **({} if name in GIVEN else SHALLOW))
        config = target.from_config(made.config).config
    assert values(config, source) == values(made.config, target)


@pytest.mark.parametrize("name", GIVEN)
def test_there_and_back(name):
    for source, target in (PAIRS[name], PAIRS[name][::-1]):
        with place(name):
            first = source(**GIVEN[name])
            again = source.from_config(target.from_config(first.config).config)
        assert values(again.config, source) == values(first.config, source)


@pytest.mark.parametrize("name", GIVEN)
def test_what_a_saved_stock_config_does_not_name_has_the_stock_default(name, tmp_path):
    """As in files of older versions, which lack the newer arguments."""
    stock, ours = PAIRS[name]
    stock().save_config(tmp_path)
    loaded = ours.load_config(tmp_path)
    for left_out in ("shift_factor", "use_quant_conv", "shift", "max_shift"):
        loaded.pop(left_out, None)
    assert values(ours.from_config(loaded).config, stock) == values(stock().config, ours)


def test_other_values_win_over_the_config():
    vae = AutoencoderKLFlux.from_config(AutoencoderKL().config, latent_channels=8)
    assert (vae.config.latent_channels, vae.config.layers_per_block) == (8, 1)


def test_an_own_config_has_own_defaults():
    with place("vae"):
        assert AutoencoderKLFlux.from_config({"norm_num_groups": 4}).config.latent_channels == 16
    assert FluxFlowMatchScheduler.from_config({"base_grid": "diffsynth"}).config.shift == 3.0


@pytest.mark.parametrize("name", GIVEN)
def test_a_loaded_config_names_no_defaults(name, tmp_path):
    ours = PAIRS[name][1]
    with place(name):
        ours(**GIVEN[name]).save_config(tmp_path)
        assert "_use_default_values" not in ours.from_config(ours.load_config(tmp_path)).config
