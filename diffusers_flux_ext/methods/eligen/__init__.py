"""EliGen: prompts for regions."""

from ...demand import Demand
from ..method import Method, Release


METHOD = Method(
    package=__name__,
    name="EliGen",
    about="prompts for regions",
    state="equals the reference to 1e-3 over a loop",
    page="eligen",
    exports={"condition": ["EntityRegions"], "pipeline": ["FluxEliGenPipeline"]},
    releases=[
        Release(
            "eligen",
            "entities in regions",
            counts="entities",
            count=3,
            demand=lambda number: Demand(text_tokens=512 * number, texts=number, masked=True),
        )
    ],
)
