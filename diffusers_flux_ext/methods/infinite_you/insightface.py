"""The face encoder of InfiniteYou: insightface's detector and ArcFace."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .arcface import CROP, ArcFaceIRSE50
from .faces import FaceEmbedding, FaceEncoder, choose_face


ARCFACE = "recognition_arcface_ir_se50.pth"
DETECTION_SIZES = (640, 320, 160)


class InsightFaceEncoder(FaceEncoder):
    """Finds faces as InfiniteYou does ([code](https://github.com/bytedance/InfiniteYou)) and embeds them in float32.

    The detector looks at the image at 640, then 320, then 160 pixels until it finds a face, so that both small and
    frame-filling faces are found. The recognition network is facexlib's ArcFace IR-SE50, which InfiniteYou was trained
    with, and not the one that comes with insightface's models. Needs `pip install "diffusers-flux-ext[infinite-you]"`.

    Args:
        arcface (`str`, `Path` or `torch.nn.Module`):
            Path of `recognition_arcface_ir_se50.pth`, or a module that maps aligned BGR crops `(1, 3, 112, 112)` in
            [-1, 1] to `(1, 512)`.
        root (`str`, defaults to `"~/.insightface"`): Folder whose `models/<name>` holds the detector.
        name (`str`, defaults to `"antelopev2"`): insightface's model pack.
        providers (`Sequence[str]`, *optional*): Execution providers of onnxruntime; CUDA, then the CPU by default.

    Raises:
        ImportError: if insightface is not installed; the message says what to install.
    """

    def __init__(
        self,
        arcface: str | Path | torch.nn.Module,
        root: str = "~/.insightface",
        name: str = "antelopev2",
        providers: Sequence[str] = ("CUDAExecutionProvider", "CPUExecutionProvider"),
    ) -> None:
        analysis, self._align = _import_insightface()
        self.arcface = arcface if isinstance(arcface, torch.nn.Module) else ArcFaceIRSE50.from_single_file(arcface)
        self._detectors = []
        for size in DETECTION_SIZES:
            detector = analysis(name=name, root=root, providers=list(providers), allowed_modules=["detection"])
            detector.prepare(ctx_id=0, det_size=(size, size))
            self._detectors.append(detector)

    def encode(self, image: Image.Image, index: int | None = None) -> FaceEmbedding:
        """See [`FaceEncoder.encode`]."""
        bgr = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
        faces = self._detect(bgr)
        face = faces[choose_face([face["bbox"] for face in faces], index)]
        keypoints = np.asarray(face["kps"], dtype=np.float32)
        crop = self._align(bgr, landmark=keypoints, image_size=CROP)
        pixels = torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)[None].float() / 127.5 - 1
        weight = next(self.arcface.parameters(), pixels)
        with torch.no_grad():
            embedding = self.arcface(pixels.to(weight.device))[0].float().cpu()
        left, top, right, bottom = (float(edge) for edge in face["bbox"])
        return FaceEmbedding(embedding, torch.from_numpy(keypoints), (left, top, right, bottom))

    def _detect(self, bgr: np.ndarray) -> list[Any]:
        for detector in self._detectors:
            faces = detector.get(bgr)
            if len(faces):
                return list(faces)
        return []


def load_face_encoder(path: str | Path) -> InsightFaceEncoder:
    """Make the encoder from its published files.

    Args:
        path (`str` or `Path`):
            `recognition_arcface_ir_se50.pth`, beside which the detector is taken from `~/.insightface`; or a folder
            with this file, whose `models/antelopev2` holds the detector.

    Returns:
        `InsightFaceEncoder`

    Raises:
        FileNotFoundError: if the folder does not have the file.
        ImportError: if insightface is not installed; the message says what to install.
    """
    source = Path(path)
    if not source.is_dir():
        return InsightFaceEncoder(source)
    if not (source / ARCFACE).is_file():
        raise FileNotFoundError(f"`{source}` does not have `{ARCFACE}`. Give that file, or the folder that it is in.")
    return InsightFaceEncoder(source / ARCFACE, root=str(source))


def _import_insightface() -> tuple[Callable[..., Any], Callable[..., np.ndarray]]:
    try:
        app, face_align = (importlib.import_module(f"insightface.{name}") for name in ("app", "utils.face_align"))
    except ImportError as error:
        raise ImportError(
            "`InsightFaceEncoder` needs insightface and onnxruntime: pip install 'diffusers-flux-ext[infinite-you]'. "
            "Without them, give `id_embeds` (ArcFace embeddings of 512 numbers) or a `FaceEncoder` of your own."
        ) from error
    return app.FaceAnalysis, face_align.norm_crop
