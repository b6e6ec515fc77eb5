from diffusers_flux_ext import FluxConditionedPipeline  # noqa: F401
