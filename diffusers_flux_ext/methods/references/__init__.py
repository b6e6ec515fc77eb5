"""Reference images (Kontext)."""

from ...demand import Demand
from ..method import Method, Release


# The largest of FLUX.1 Kontext's preferred sizes, in tokens of 16 x 16 pixels.
MEGAPIXEL_TOKENS = 4150

METHOD = Method(
    package=__name__,
    name="References (Kontext)",
    about="any number of reference images, scale each",
    state="bit-equal to `FluxKontextPipeline` for one, equals the reference to 1e-3 over a loop",
    page="references",
    exports={"condition": ["ReferenceImages"]},
    releases=[
        Release(
            "kontext",
            "reference images of a megapixel",
            counts="references",
            demand=lambda number: Demand(reference_tokens=MEGAPIXEL_TOKENS * number),
        )
    ],
)
