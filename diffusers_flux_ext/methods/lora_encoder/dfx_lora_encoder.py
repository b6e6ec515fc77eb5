from diffusers_flux_ext import FluxLoRAEncoderPipeline  # noqa: F401
