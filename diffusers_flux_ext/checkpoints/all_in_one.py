"""Files that hold several models of a pipeline: which tensors belong to the transformer, and what else is there."""

from __future__ import annotations

from collections.abc import Iterable

from .layouts import PREFIX
from .text_encoders import has_clip, has_t5
from .vae import has_vae


# ComfyUI writes the first in checkpoints and the second in files of the transformer alone.
TRANSFORMER_PREFIXES = (PREFIX, "diffusion_model.")
# Where ComfyUI and latent diffusion keep the other models.
OTHER_MODELS = ("text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner.")
# Tensors beside the models: schedules of other diffusion models, and tokenizers.
_BESIDE = ("model_ema.", "alphas_", "betas", "sqrt_", "log_one_minus", "posterior_", "spiece_model", "model_sampling.")


def transformer_keys(keys: Iterable[str]) -> dict[str, str]:
    """Select the transformer's keys of a file that may hold other models.

    Args:
        keys (`Iterable[str]`): All keys of a file.

    Returns:
        `dict[str, str]`: The keys by what they are without the prefix of ComfyUI; keys of an unknown kind are kept.
    """
    own = [key for key in keys if not key.startswith(OTHER_MODELS) and not key.startswith(_BESIDE)]
    prefix = next((each for each in TRANSFORMER_PREFIXES if any(key.startswith(each) for key in own)), "")
    names = {key.removeprefix(prefix): key for key in own}
    # Keys that collide without the prefix are told apart by what reads them.
    return names if len(names) == len(own) else {key: key for key in own}


def models_in(keys: Iterable[str]) -> set[str]:
    """Return the names of a pipeline's components that a file holds, by its keys.

    Args:
        keys (`Iterable[str]`): All keys of a file.

    Returns:
        `set[str]`: Of `"transformer"`, `"text_encoder"`, `"text_encoder_2"` and `"vae"`.
    """
    keys = set(keys)
    blocks = ("double_blocks.", "single_blocks.", "transformer_blocks.", "single_transformer_blocks.", "blocks.")
    tests = {
        "transformer": any(key.startswith(blocks) for key in transformer_keys(keys)),
        "text_encoder": has_clip(keys),
        "text_encoder_2": has_t5(keys),
        "vae": has_vae(keys),
    }
    return {name for name, found in tests.items() if found}
