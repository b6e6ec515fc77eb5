"""FLUX.1 Fill."""

from ..method import Method, Release


METHOD = Method(
    package=__name__,
    name="Fill",
    about="inpainting and outpainting, with true CFG and other conditions",
    state="bit-equal to `FluxFillPipeline`, equals the reference to 1e-3 over a loop",
    page="fill",
    exports={"condition": ["FillMask"]},
    releases=[Release("fill", "FLUX.1-Fill-dev", transformer={"in_channels": 384, "out_channels": 64})],
)
