"""Where models compute, found as diffusers finds it."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import DiffusionPipeline, FluxPipeline
from diffusers.hooks.group_offloading import _get_top_level_group_offload_hook
from diffusers.utils.torch_utils import get_module_execution_device

from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext._devices import execution_device, is_hooked
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_vae


META = torch.device("meta")


def stock_device(pipe):
    """What diffusers makes of the same components."""
    return DiffusionPipeline._execution_device.fget(pipe)


@pytest.fixture
def pipe():
    return tiny_pipeline(FluxConditionedPipeline)


def align(module):
    add_hook_to_module(module, AlignDevicesHook(execution_device="meta"))


def offload(module):
    module.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    # There are no streams for it, but nothing runs.
    _get_top_level_group_offload_hook(module).config.onload_device = META


@pytest.mark.parametrize("hook", [align, offload])
def test_hooks_say_where_a_model_computes(hook):
    vae = tiny_vae()
    assert not is_hooked(vae)
    assert execution_device(vae) == get_module_execution_device(vae) == torch.device("cpu")
    hook(vae)
    assert is_hooked(vae)
    assert execution_device(vae) == get_module_execution_device(vae) == META


def test_a_hook_deep_inside_is_found():
    vae = tiny_vae()
    align(vae.decoder.mid_block.resnets[0].conv1)
    assert execution_device(vae) == get_module_execution_device(vae) == META


def test_modules_without_a_device_of_their_own_or_without_weights():
    assert execution_device(torch.nn.Linear(2, 2, device=META)) == META
    norm = torch.nn.BatchNorm1d(2, affine=False)
    assert execution_device(norm) == get_module_execution_device(norm)


@pytest.mark.parametrize(
    "hook, name", [(align, "transformer"), (align, "text_encoder_2"), (offload, "transformer"), (offload, "vae")]
)
def test_hooks_of_any_component_say_where_a_pipeline_computes(pipe, hook, name):
    assert pipe._execution_device == stock_device(pipe) == torch.device("cpu")
    hook(getattr(pipe, name))
    assert pipe._execution_device == stock_device(pipe)


def test_a_pipeline_on_another_device_and_one_without_models(pipe):
    for component in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        component.to(META)
    assert pipe._execution_device == stock_device(pipe) == META
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        setattr(pipe, name, None)
    assert pipe._execution_device == stock_device(pipe)


def test_a_call_leaves_no_hook(pipe):
    stock = tiny_pipeline(FluxPipeline)
    assert torch.equal(pipe(**call_kwargs()).images, stock(**call_kwargs()).images)
    assert not is_hooked(pipe.transformer)
    assert pipe._execution_device == stock_device(pipe)
