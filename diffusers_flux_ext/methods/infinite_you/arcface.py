"""ArcFace IR-SE50, the face recognition network that InfiniteYou was trained with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...checkpoints.modules import fill_module, read_weights_file


STAGES = ((64, 64, 3), (64, 128, 4), (128, 256, 14), (256, 512, 3))
CROP, EMBEDDING = 112, 512


class _SqueezeExcitation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weights = self.fc2(self.fc1(hidden_states.mean(dim=(2, 3), keepdim=True)).relu())
        return hidden_states * weights.sigmoid()


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if channels_in != channels:
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            _SqueezeExcitation(channels),
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.res_layer(hidden_states) + self.shortcut_layer(hidden_states)


class ArcFaceIRSE50(nn.Module):
    """ArcFace IR-SE50 ([paper](https://huggingface.co/papers/1801.07698)).

    Names and sizes are those of facexlib's published `recognition_arcface_ir_se50.pth`. The input is an aligned crop
    in BGR.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        units = [
            _Residual(channels_in if unit == 0 else channels, channels, 2 if unit == 0 else 1)
            for channels_in, channels, count in STAGES
            for unit in range(count)
        ]
        self.body = nn.Sequential(*units)
        side = CROP // 2 ** len(STAGES)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(EMBEDDING),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(EMBEDDING * side * side, EMBEDDING),
            nn.BatchNorm1d(EMBEDDING),
        )

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        """Embed aligned crops.

        Args:
            crops (`torch.Tensor` of shape `(batch_size, 3, 112, 112)`): BGR in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(batch_size, 512)`, of length 1.
        """
        return nn.functional.normalize(self.output_layer(self.body(self.input_layer(crops))), dim=1)

    @classmethod
    def from_single_file(cls, path: str | Path) -> ArcFaceIRSE50:
        """Load the published file, a pickle that is read with `weights_only=True`; raise a `ValueError` otherwise."""
        weights = read_weights_file(path)
        with torch.device("meta"):
            model = cls()
        try:
            fill_module(model, dict(weights))
        except ValueError as error:
            raise ValueError(
                f"`{path}` does not hold the weights of ArcFace IR-SE50. InfiniteYou needs facexlib's "
                f"`recognition_arcface_ir_se50.pth`; embeddings of other networks mean nothing to it. {error}"
            ) from error
        return model.eval().requires_grad_(False)
