from diffusers_flux_ext import FluxStep1XEditPipeline  # noqa: F401
