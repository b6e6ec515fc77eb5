from diffusers_flux_ext import FluxInfiniteYouPipeline  # noqa: F401
