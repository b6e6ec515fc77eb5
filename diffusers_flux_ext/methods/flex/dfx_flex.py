from diffusers_flux_ext import FluxFlexPipeline  # noqa: F401
