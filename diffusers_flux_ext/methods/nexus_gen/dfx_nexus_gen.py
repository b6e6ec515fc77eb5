from diffusers_flux_ext import FluxNexusGenPipeline  # noqa: F401
