"""LoRAs that are meant for some tokens only, as far as their layers show."""

from __future__ import annotations

from collections.abc import Iterable

from ..updates import StoredLayer


# The layers that OminiControl trains by default: all that affect image tokens, without the first of a feed-forward.
_IMAGE_LAYERS = frozenset(
    {
        *(f"transformer_blocks.{{}}.{name}" for name in ("norm1.linear", "ff.net.2", "attn.to_out.0")),
        *(f"transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"),
        *(f"single_transformer_blocks.{{}}.{name}" for name in ("norm.linear", "proj_mlp", "proj_out")),
        *(f"single_transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"),
    }
)


def find_token_scope(layers: Iterable[StoredLayer]) -> str | None:
    """Recognise LoRAs whose layers are those of methods that apply them to some tokens only.

    The keys of such a file are those of any LoRA, so this is only likely: training on all tokens may use the
    same layers.

    Args:
        layers (`Iterable[StoredLayer]`): The layers of a file.

    Returns:
        `str`: A sentence that says which tokens it is probably meant for, or `None`.
    """
    forms = {target for layer in layers if layer.key.component == "transformer" for target in layer.key.layer.targets}
    if forms - {"x_embedder"} != _IMAGE_LAYERS:
        return None
    return (
        "Its layers are exactly those that OminiControl, and others with its recipe such as XVerse, train for the "
        "tokens of a reference image only. Loaded as a plain LoRA it acts on every token, which gives other "
        "images than those it was trained for, unless it was trained on all tokens."
    )
