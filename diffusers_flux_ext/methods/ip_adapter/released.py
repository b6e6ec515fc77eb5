"""The IP-Adapter of XLabs, by its sizes."""

from .model import FluxIPAdapter


def xlabs() -> FluxIPAdapter:
    """Return the IP-Adapter of XLabs, on the default device."""
    return FluxIPAdapter(
        num_blocks=19,
        image_embed_dim=768,
        num_tokens=4,
        image_proj_type="linear",
        kv_bias=True,
        key_norm_eps=None,
        after_block=True,
    )
