"""Flex.2: inpainting and control by one model."""

from ..method import Method, Release


METHOD = Method(
    package=__name__,
    name="Flex.2",
    about="inpainting and control by one model",
    state="equals the reference to 1e-3 over a loop",
    page="flex",
    exports={"condition": ["FlexControl"], "pipeline": ["FluxFlexPipeline"]},
    releases=[
        Release(
            "flex",
            "Flex.2-preview",
            transformer={"in_channels": 196, "out_channels": 64, "num_layers": 8, "num_single_layers": 38},
        )
    ],
)
