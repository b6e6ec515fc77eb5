from diffusers_flux_ext import FluxInsertAnythingPipeline  # noqa: F401
