"""The reference's ControlNet at any size, and its `MultiControlNet`."""

from typing import Any

from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import nn

from benchmarks.support.reference.boot import import_reference
from benchmarks.support.reference.dit import add_trunk


flux_controlnet = import_reference("diffsynth.models.flux_controlnet")
converters = import_reference("diffsynth.utils.state_dict_converters.flux_controlnet")
flux_image = import_reference("diffsynth.pipelines.flux_image")
UNION_MODES = {"canny": 0, "tile": 1, "depth": 2, "blur": 3, "pose": 4, "gray": 5, "lq": 6}


class _AtDepthOf(flux_controlnet.FluxControlNet):
    """The reference passes the depths 19 and 38 to its own alignment; here they become the base model's."""

    def align_res_stack_to_original_blocks(self, res_stack: Any, num_blocks: int, hidden_states: Any) -> Any:
        return super().align_res_stack_to_original_blocks(res_stack, self.depths[num_blocks], hidden_states)


def reference_controlnet(controlnet: FluxControlNetModel, base: FluxTransformer2DModel) -> nn.Module:
    """The reference's `FluxControlNet` with the sizes and weights of `controlnet`, for a base model of any depth."""
    config, dim = controlnet.config, controlnet.inner_dim
    module = _AtDepthOf.__new__(_AtDepthOf)
    nn.Module.__init__(module)
    add_trunk(module, config, dim)
    module.x_embedder = nn.Linear(config.in_channels, dim)
    module.controlnet_blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(config.num_layers))
    module.controlnet_single_blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(config.num_single_layers))
    module.mode_dict = UNION_MODES if config.num_mode else {}
    module.controlnet_mode_embedder = nn.Embedding(config.num_mode, dim) if config.num_mode else None
    module.controlnet_x_embedder = nn.Linear(controlnet.controlnet_x_embedder.in_features, dim)
    module.depths = {19: base.config.num_layers, 38: base.config.num_single_layers}
    module.load_state_dict(converters.FluxControlNetStateDictConverter(dict(controlnet.state_dict())))
    return module.eval().requires_grad_(False)


def reference_multi_controlnet(controlnets: list[FluxControlNetModel], base: FluxTransformer2DModel) -> Any:
    """The reference's holder of several ControlNets."""
    return flux_image.MultiControlNet([reference_controlnet(controlnet, base) for controlnet in controlnets])


def controlnet_input(**inputs: Any) -> Any:
    """The reference's `ControlNetInput`; its progress runs from 1 to 0."""
    return flux_image.ControlNetInput(**inputs)
