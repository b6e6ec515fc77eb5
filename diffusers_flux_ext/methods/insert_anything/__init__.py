"""Insert-Anything: objects of one image in another."""

from ...demand import Demand
from ..method import Method, Release
from ..redux import IMAGE_TOKENS


METHOD = Method(
    package=__name__,
    name="Insert-Anything",
    about="objects of one image in another",
    state="equals the reference to 1e-3 over a loop, its image processing in every pixel, without OpenCV",
    page="insert_anything",
    exports={"pipeline": ["FluxInsertAnythingPipeline"]},
    releases=[
        Release(
            "insert-anything",
            "Insert-Anything; its canvas is twice as wide as high",
            {"image_encoder": "...models.released:siglip", "image_embedder": "diffusers:ReduxImageEncoder"},
            {"in_channels": 384, "out_channels": 64},
            demand=lambda number: Demand(appended_tokens=IMAGE_TOKENS),
        )
    ],
)
