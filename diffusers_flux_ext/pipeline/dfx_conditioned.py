from diffusers_flux_ext.pipeline.conditioned import FluxConditionedPipeline  # noqa: F401
