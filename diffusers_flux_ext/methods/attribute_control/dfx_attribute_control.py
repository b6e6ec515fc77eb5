from diffusers_flux_ext import FluxAttributeControlPipeline  # noqa: F401
