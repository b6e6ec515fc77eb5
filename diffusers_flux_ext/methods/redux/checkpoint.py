"""Redux' embedder from its published files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import ReduxImageEncoder

from ...checkpoints.layouts import list_keys
from ...checkpoints.modules import fill_module, read_tensors


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
    """The model that turns embeddings of a picture's patches into text tokens, for [`ReduxImages`].

    It is known by its structure, `redux_up.*` and `redux_down.*`; the sizes follow from the shapes.

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
    weights = read_tensors(
        source if isinstance(source, Mapping) else _file(Path(source)), ("module.", "image_embedder.")
    )
    up, down = weights.get("redux_up.weight"), weights.get("redux_down.weight")
    if up is None or down is None or up.ndim != 2 or down.ndim != 2:
        raise ValueError(
            f"This is no embedder of Redux: expected `redux_up.*` and `redux_down.*`, but it has "
            f"{list_keys(sorted(weights))}."
        )
    with torch.device("meta"):
        model = ReduxImageEncoder(redux_dim=up.shape[1], txt_in_features=down.shape[0])
    return fill_module(model, weights, torch_dtype, device)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in FILES if (path / name).is_file()]
    if not found:
        raise FileNotFoundError(f"`{path}` has none of {list(FILES)}. Give the embedder's file itself.")
    return found[0]
