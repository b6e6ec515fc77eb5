"""diffusers' tests of the FLUX.1 transformer, the VAE, and those for all models with a ControlNet."""

import torch
from diffusers import AutoencoderKL, FluxControlNetModel, FluxTransformer2DModel

from diffusers_flux_ext import AutoencoderKLFlux, FluxExtControlNetModel, FluxExtTransformer2DModel

from .checkout import STOCK, add_tests, skip_without_checkout, test_classes, upstream


skip_without_checkout()

transformer = upstream("models.transformers.test_models_transformer_flux")
autoencoder = upstream("models.autoencoders.test_models_autoencoder_kl")


def add_model(suite: str, name: str, tests: type, stock: type, ours: type) -> None:
    variants = {
        STOCK: {"model_class": stock},
        "ours": {"model_class": ours, "replaces": {stock.__name__: ours}},
    }
    add_tests(globals(), suite, tests, variants)


class ControlNetConfig(transformer.FluxTransformerTesterConfig):
    """Upstream has no tests of `FluxControlNetModel`; this is the transformer's config with a control picture."""

    def get_dummy_inputs(self, *args, **kwargs):
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return {**inputs, "controlnet_cond": torch.ones_like(inputs["hidden_states"])}


for name, tests in test_classes(transformer, transformer.BaseModelTesterConfig):
    add_model("transformer", name, tests, FluxTransformer2DModel, FluxExtTransformer2DModel)
for name, tests in test_classes(autoencoder, transformer.BaseModelTesterConfig):
    add_model("vae", name, tests, AutoencoderKL, AutoencoderKLFlux)
for mixin in ("ModelTesterMixin", "MemoryTesterMixin", "TrainingTesterMixin", "AttentionTesterMixin"):
    tests = type(f"FluxControlNet{mixin}", (ControlNetConfig, getattr(transformer, mixin)), {})
    tests.__module__ = transformer.__name__
    add_model("controlnet", tests.__name__, tests, FluxControlNetModel, FluxExtControlNetModel)
