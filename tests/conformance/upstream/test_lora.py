"""diffusers' LoRA tests: those of FLUX.1 Control, and the same ones without a control picture."""

from typing import Any

from diffusers import FluxControlPipeline, FluxPipeline

from diffusers_flux_ext import FluxConditionedPipeline

from .checkout import STOCK, add_tests, skip_without_checkout, upstream
from .stand_ins import FluxControlPipelineStandIn


skip_without_checkout()

module = upstream("lora.test_lora_layers_flux")
Control: Any = module.FluxControlLoRATests


class FluxLoRATests(module.PeftLoraLoaderMixinTests, module.unittest.TestCase):
    """The common tests, which upstream's pytest-style tests of `FluxPipeline` cover in part."""

    transformer_kwargs = {**Control.transformer_kwargs, "in_channels": 4}

    def get_dummy_inputs(self, with_generator: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        noise, input_ids, inputs = Control.get_dummy_inputs(self, with_generator)
        del inputs["control_image"]
        return noise, input_ids, inputs


for shared in ("scheduler_cls", "scheduler_kwargs", "transformer_cls", "vae_kwargs", "has_two_text_encoders",
               "tokenizer_cls", "tokenizer_id", "tokenizer_2_cls", "tokenizer_2_id", "text_encoder_cls",
               "text_encoder_id", "text_encoder_2_cls", "text_encoder_2_id", "output_shape"):  # fmt: skip
    setattr(FluxLoRATests, shared, vars(Control)[shared])
FluxLoRATests.__module__ = module.__name__

for suite, tests, stock, ours in (
    ("control LoRA", Control, FluxControlPipeline, FluxControlPipelineStandIn),
    ("LoRA", FluxLoRATests, FluxPipeline, FluxConditionedPipeline),
):
    # Ours load LoRAs of T5, too, whose layers have other names than CLIP's.
    layers = {"text_encoder_target_modules": [*tests.text_encoder_target_modules, "q", "k", "v", "o"]}
    variants = {
        STOCK: {"pipeline_class": stock, **layers},
        "ours": {"pipeline_class": ours, "replaces": {stock.__name__: ours}, **layers},
    }
    add_tests(globals(), suite, tests, variants)
del FluxLoRATests, tests
