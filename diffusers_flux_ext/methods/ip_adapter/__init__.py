"""IP-Adapters: images as prompts."""

from ...demand import Demand
from ..method import Method, Release, Trainable


def _held_bytes(blocks: int, tokens: int) -> int:
    """Return the bytes of an image's keys and values in a 16-bit dtype, held for all steps."""
    return 2 * blocks * tokens * 3072 * 2


METHOD = Method(
    package=__name__,
    name="IP-Adapter",
    about="images as prompts (InstantX, XLabs)",
    state="equals the reference to 1e-3 over a loop, diffusers' processor to 1e-5",
    page="ip_adapter",
    exports={"condition": ["IPAdapterImages"], "model": ["FluxIPAdapter"]},
    converters={"ip-adapter": ".convert:main"},
    releases=[
        Release(
            "ip-adapter",
            "IP-Adapter of InstantX",
            {"image_encoder": "...models.released:siglip", "ip_adapter": ".model:FluxIPAdapter"},
            counts="images",
            demand=lambda number: Demand(held_bytes=number * _held_bytes(57, 128)),
        ),
        Release(
            "ip-adapter-xlabs",
            "IP-Adapter of XLabs",
            {"image_encoder_xlabs": "...models.released:clip_vision", "ip_adapter_xlabs": ".released:xlabs"},
            counts="images",
            demand=lambda number: Demand(held_bytes=number * _held_bytes(19, 4)),
        ),
    ],
    trains={"ip-adapter": Trainable(".model:FluxIPAdapter", ".scratch:ip_adapter", ".scratch:files")},
)
