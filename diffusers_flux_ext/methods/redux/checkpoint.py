"""Redux' embedder from its published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import ReduxImageEncoder

from ...checkpoints.messages import list_keys, naming
from ...checkpoints.modules import fill_module, read_tensors
from ...checkpoints.sizes import build_empty, check_dimensions


# Below a folder of the published repository, of its embedder, or of the file that stands beside them.
FILES = (
    "image_embedder/diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "flux1-redux-dev.safetensors",
)


def load_redux_embedder(
    source: str | Path | Mapping[str, torch.Tensor],
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> ReduxImageEncoder:
    """Return the model that turns embeddings of an image's patches into text tokens, for [`ReduxImages`].

    It is recognised by its keys, `redux_up.*` and `redux_down.*`; the sizes follow from the shapes.

    Args:
        source (`str`, `Path` or `Mapping[str, torch.Tensor]`):
            `flux1-redux-dev.safetensors` or any other local file of these tensors (safetensors, or a pickle of tensors
            only), a folder of the published repository or its `image_embedder`, or a state dict.
        torch_dtype (`torch.dtype`, *optional*): Data type of the model; the file's by default.
        device (`str` or `torch.device`, *optional*): Device of the model; the tensors' by default.

    Returns:
        [`~diffusers.ReduxImageEncoder`] in eval mode.

    Raises:
        FileNotFoundError: if there is no such file, or none in the folder.
        ValueError: if it holds something else.
    """
    found = source if isinstance(source, Mapping) else _file(Path(source))
    with naming(found):
        weights = read_tensors(found, ("module.", "image_embedder."))
        model = build_empty(ReduxImageEncoder, _infer_config(weights))
        return fill_module(model, weights, torch_dtype, device)


def _infer_config(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    sized = ("redux_up.weight", "redux_down.weight")
    if any(key not in weights for key in sized):
        raise ValueError(
            f"This is not an embedder of Redux: expected `redux_up.*` and `redux_down.*`, got {list_keys(weights)}."
        )
    up, down = (weights[key].shape for key in sized)
    check_dimensions({sized[0]: up, sized[1]: down}, dict.fromkeys(sized, 2))
    return {"redux_dim": up[1], "txt_in_features": down[0]}


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in FILES if (path / name).is_file()]
    if not found:
        raise FileNotFoundError(f"`{path}` does not have any of {list(FILES)}. Give the embedder's file itself.")
    return found[0]
