"""Telling what model a file holds by the names of its tensors, so that tuned and re-saved files are known, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoints.layouts import CONNECTOR, PREFIX
from ..checkpoints.messages import list_keys
from ..checkpoints.text_encoder_layouts import CLIP_PREFIX, T5_PREFIX
from ..checkpoints.vae_layouts import VAE_PREFIXES
from ..methods.nexus_gen.checkpoint import ADAPTER, MERGER, TRANSFORMER


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        name (`str`): For [`load_parts`].
        what (`str`): In words.
        example (`str`): A published file.
        fits (`Callable`): Whether keys are those of such a file.
    """

    name: str
    what: str
    example: str
    fits: Callable[[frozenset[str]], bool]


def _begins(*prefixes: str) -> Callable[[frozenset[str]], bool]:
    """Whether any key has one of the prefixes."""
    return lambda keys: any(key.startswith(prefixes) for key in keys)


def _has(*names: str) -> Callable[[frozenset[str]], bool]:
    """Whether any of these keys is there."""
    return lambda keys: any(name in keys for name in names)


def _both(*tests: Callable[[frozenset[str]], bool]) -> Callable[[frozenset[str]], bool]:
    return lambda keys: all(test(keys) for test in tests)


def _is_lora(keys: frozenset[str]) -> bool:
    return any(".lora_" in key or key.endswith((".alpha", ".lokr_w1", ".hada_w1_a")) for key in keys)


def _is_clip(keys: frozenset[str]) -> bool:
    bare = {key.removeprefix("text_model.") for key in keys}
    if any(key.startswith(("vision_model.head.", "shared.", "logit_bias")) for key in keys):
        return False
    return bool(
        {"encoder.layers.0.self_attn.q_proj.weight", "embeddings.token_embedding.weight"} <= bare
        or {"encoders.0.attn.to_q.weight", "token_embedding.weight"} <= bare
        or {"transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"} <= bare
    )


_VAE_LEVELS = [f"{prefix}encoder.{down}." for prefix in VAE_PREFIXES for down in ("down", "down_blocks")]

# Name, in words, a published file, and the test; the first that fits is taken.
KINDS: tuple[FileKind, ...] = tuple(
    FileKind(*row)
    for row in (
        ("lora", "a LoRA", "pipe.load_lora(pipe.dit, file)", _is_lora),
        (
            "ipadapter",
            "an IP-Adapter",
            "ip-adapter.bin",
            _begins("ip_adapter.", "ipadapter_modules.", "ip_adapter_proj_model."),
        ),
        ("image_proj_model", "InfiniteYou's projector", "image_proj_model.bin", _has("latents", "image_proj.latents")),
        (
            "controlnet",
            "a ControlNet",
            "diffusion_pytorch_model.safetensors",
            _begins("controlnet_blocks.", "controlnet_x_embedder.", "pos_embed_input."),
        ),
        ("lora_encoder", "LoRA-Encoder", "model.safetensors", _begins("embedder.model_dict.")),
        ("lora_patcher", "LoRA-Fusion", "model.safetensors", _begins("model_dict.")),
        (
            "value_controller",
            "an encoder of AttriCtrl",
            "models/brightness.safetensors",
            _begins("prefer_value_embedder."),
        ),
        ("flux_redux_image_embedder", "Redux' embedder", "image_embedder/*.safetensors", _has("redux_up.weight")),
        ("nexus_gen", "Nexus-Gen's language model", "model*.safetensors", _has("vision_head.weight")),
        ("qwenvl", "Qwen2.5-VL", "model-*.safetensors", _begins("visual.", "model.visual.")),
        (
            "nexus_decoder",
            "a decoder of Nexus-Gen",
            "generation_decoder.bin, edit_decoder.bin",
            _both(_begins(TRANSFORMER), _begins(ADAPTER.prefix, MERGER.prefix)),
        ),
        ("step1x", "Step1X-Edit", "step1x-edit-i1258.safetensors", _begins(CONNECTOR)),
        (
            "dit",
            "a FLUX.1 transformer",
            "flux1-dev.safetensors",
            _begins("double_blocks.", "transformer_blocks.", f"{PREFIX}double_blocks.", "single_blocks."),
        ),
        (
            "siglip",
            "SigLIP's vision model",
            "image_encoder/model.safetensors",
            _begins("vision_model.head.", "head.attention."),
        ),
        ("text_encoder_1", "CLIP's text model", "text_encoder/model.safetensors", _is_clip),
        (
            "text_encoder_2",
            "T5's encoder",
            "text_encoder_2/*.safetensors",
            _has("encoder.block.0.layer.0.SelfAttention.q.weight"),
        ),
        ("vae", "a VAE", "ae.safetensors", _begins(*_VAE_LEVELS)),
    )
)
_WHOLE = {PREFIX: "dit", CLIP_PREFIX: "text_encoder_1", T5_PREFIX: "text_encoder_2", "vae.": "vae"}
"""Beginnings of keys in files that hold all models of FLUX.1."""


@dataclass(frozen=True)
class Part:
    """What a file holds, or one model of a file that holds several.

    Attributes:
        kind (`FileKind`): The kind.
        state_dict (`Mapping[str, Any]`): Its tensors, as in the file.
        source (`str`): The file, for errors.
    """

    kind: FileKind
    state_dict: Mapping[str, Any]
    source: str


def flat_keys(state_dict: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys of a state dict, those of nested ones with a dot between."""
    return frozenset(
        name
        for key, value in state_dict.items()
        for name in ([f"{key}.{inner}" for inner in value] if isinstance(value, Mapping) else [key])
    )


def recognise(state_dict: Mapping[str, Any], source: str) -> list[Part]:
    """Tell what models a file holds.

    Args:
        state_dict (`Mapping[str, Any]`): Its tensors by name, which may be nested and on the meta device.
        source (`str`): The file, for errors.

    Returns:
        `list[Part]`: one for most files.

    Raises:
        ValueError: if it is a LoRA, or nothing that is known; the message lists keys and what was expected.
    """
    keys = flat_keys(state_dict)
    begun = [prefix for prefix in _WHOLE if any(key.startswith(prefix) for key in keys)]
    if len(begun) > 1:
        return _split(state_dict, begun, source)
    kind = next((kind for kind in KINDS if kind.fits(keys)), None)
    if kind is None:
        raise ValueError(f"`{source}` is not known: {_described(keys)} {_expected()}")
    if kind.name == "lora":
        raise ValueError(
            f"`{source}` is a LoRA: {_described(keys)} It is not a model: load it with `{kind.example}` after "
            f"`from_pretrained`."
        )
    return [Part(kind, state_dict, source)]


def _split(state_dict: Mapping[str, Any], begun: Sequence[str], source: str) -> list[Part]:
    left = [key for key in state_dict if not key.startswith(tuple(begun))]
    if left:
        raise ValueError(f"`{source}` holds several models, and beside them {list_keys(left)}, which are not known.")
    kinds = {kind.name: kind for kind in KINDS}
    return [
        Part(kinds[_WHOLE[prefix]], {k: v for k, v in state_dict.items() if k.startswith(prefix)}, source)
        for prefix in begun
    ]


def _described(keys: Iterable[str]) -> str:
    keys = list(keys)
    first = sorted({key.partition(".")[0] for key in keys})
    return (
        f"It has {len(keys)} tensors such as {list_keys(sorted(keys)[:3])}, whose names begin with {list_keys(first)}."
    )


def _expected() -> str:
    known = "; ".join(f"{kind.what} (`{kind.example}`)" for kind in KINDS if kind.name != "lora")
    return f"Expected is one of: {known}."
