"""Inpainting with any conditions."""

from ..method import Method, Release


METHOD = Method(
    package=__name__,
    name="Inpainting",
    about="inpainting with any conditions, EliGen included",
    state="the outside stays bit-equal",
    page="inpainting",
    exports={"condition": ["InpaintRegion"]},
    releases=[Release("inpaint", "a region is redrawn")],
)
