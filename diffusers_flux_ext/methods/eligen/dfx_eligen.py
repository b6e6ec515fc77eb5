from diffusers_flux_ext import FluxEliGenPipeline  # noqa: F401
