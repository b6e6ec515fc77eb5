"""diffusers' tests of all FLUX.1 pipelines, their caches, IP-Adapters and LoRAs."""

from functools import partial
from types import ModuleType

from diffusers import FluxPipeline

from diffusers_flux_ext import (
    AutoencoderKLFlux,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    FluxExtTransformer2DModel,
    FluxFlowMatchScheduler,
)

from .checkout import STOCK, add_tests, skip_without_checkout, test_classes, upstream
from .stand_ins import STAND_INS


skip_without_checkout()

OUR_COMPONENTS = {
    "FluxTransformer2DModel": FluxExtTransformer2DModel,
    # Upstream leaves these at the stock defaults: one resolution.
    "AutoencoderKL": partial(
        AutoencoderKLFlux, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",)
    ),
    "FlowMatchEulerDiscreteScheduler": partial(FluxFlowMatchScheduler, base_grid="diffusers", shift=1.0),
}
MODULES = {
    "flux": "img2img inpaint fill kontext kontext_inpaint control control_img2img control_inpaint".split(),
    "controlnet_flux": ["controlnet_flux", "controlnet_flux_img2img", "controlnet_flux_inpaint"],
}


# Ours load LoRAs of T5, too, whose layers upstream's table lacks.
upstream("pipelines.testing_utils.lora").TEXT_ENCODER_TARGET_MODULES.setdefault("t5", ["q", "k", "v", "o"])


def add_stand_ins(suite: str, module: ModuleType) -> None:
    for _, tests in test_classes(module, object):
        stock = tests.pipeline_class  # type: ignore[attr-defined]
        ours = STAND_INS[stock]
        variants = {STOCK: {}, "ours": {"pipeline_class": ours, "replaces": {stock.__name__: ours}}}
        add_tests(globals(), suite, tests, variants)


def add_flux_pipeline() -> None:
    module = upstream("pipelines.flux.test_pipeline_flux")
    tools = upstream("pipelines.testing_utils")
    # Upstream skips all memory tests without an accelerator; these two run anywhere.
    anywhere = (tools.PipelineOffloadTesterMixin, tools.LayerwiseCastingTesterMixin)
    placement = type("TestFluxPipelinePlacement", (*anywhere, module.FluxPipelineTesterConfig), {})
    placement.__module__ = module.__name__
    variants = {
        STOCK: {},
        **{
            ours.__name__: {"pipeline_class": ours, "replaces": {"FluxPipeline": ours}}
            for ours in (FluxConditionedPipeline, FluxEliGenPipeline)
        },
        "all components ours": {
            "pipeline_class": FluxConditionedPipeline,
            "replaces": {"FluxPipeline": FluxConditionedPipeline, **OUR_COMPONENTS},
        },
    }
    for tests in (*dict(test_classes(module, tools.BasePipelineTesterConfig)).values(), placement):
        add_tests(globals(), FluxPipeline.__name__, tests, variants)


add_flux_pipeline()
for name in MODULES["flux"]:
    add_stand_ins(name, upstream(f"pipelines.flux.test_pipeline_flux_{name}"))
for name in MODULES["controlnet_flux"]:
    add_stand_ins(name, upstream(f"pipelines.controlnet_flux.test_{name}"))
