"""Control images from images, by the detectors of `controlnet_aux`, with DiffSynth-Studio's names."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from PIL import Image

from ..inputs.checks import check_choice


DETECTORS = {
    "canny": "CannyDetector",
    "depth": "MidasDetector",
    "softedge": "HEDdetector",
    "lineart": "LineartDetector",
    "lineart_anime": "LineartAnimeDetector",
    "openpose": "OpenposeDetector",
    "normal": "NormalBaeDetector",
}
"""Classes of `controlnet_aux.processor` by `processor_id`."""
UNCHANGED = ("tile", "none", "inpaint")
_OPTIONS = {"openpose": {"include_body": True, "include_hand": True, "include_face": True}}


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class Annotator:
    """Makes the control image of a ControlNet.

    Args:
        processor_id (`str`):
            `"canny"`, `"depth"`, `"softedge"`, `"lineart"`, `"lineart_anime"`, `"openpose"` or `"normal"`; `"tile"`,
            `"none"` and `"inpaint"` leave the image as it is.
        model_path (`str`, defaults to `"models/Annotators"`): Folder with the detectors' weights.
        detect_resolution (`int`, *optional*): Shorter side that the detector sees; that of the image by default.
        device (`str` or `torch.device`, *optional*): Where it runs; CUDA where there is one, else the CPU.
        skip_processor (`bool`, defaults to `False`): Whether to leave the image as it is.

    Raises:
        ImportError: if `controlnet_aux` is not installed.
        ValueError: if `processor_id` is unknown.
    """

    def __init__(
        self,
        processor_id: str,
        model_path: str = "models/Annotators",
        detect_resolution: int | None = None,
        device: str | torch.device = _device(),
        skip_processor: bool = False,
    ) -> None:
        check_choice("`processor_id`", processor_id, (*DETECTORS, *UNCHANGED))
        self.processor_id, self.detect_resolution = processor_id, detect_resolution
        self.processor: Any = None
        if not skip_processor and processor_id in DETECTORS:
            self.processor = _detector(processor_id, model_path, device)

    def to(self, device: str | torch.device) -> None:
        """Move the detector's model, if it has one."""
        model = getattr(self.processor, "model", None)
        if isinstance(model, torch.nn.Module):
            model.to(device)

    def __call__(self, image: Image.Image, mask: Any = None) -> Image.Image:
        """Return the control image of an image, of the same size.

        Args:
            image (`PIL.Image.Image`): The image.
            mask (*optional*): Not read, as in the reference.

        Returns:
            `PIL.Image.Image`
        """
        if self.processor is None:
            return image
        shorter = min(image.size)
        sizes = {"detect_resolution": self.detect_resolution or shorter, "image_resolution": shorter}
        return self.processor(image, **sizes, **_OPTIONS.get(self.processor_id, {})).resize(image.size)


def _detector(processor_id: str, model_path: str, device: str | torch.device) -> Any:
    try:
        processors = importlib.import_module("controlnet_aux.processor")
    except ImportError as error:
        raise ImportError(
            f"`Annotator({processor_id!r})` needs controlnet_aux: `pip install controlnet_aux`. Or give a control "
            f"image of your own."
        ) from error
    detector = getattr(processors, DETECTORS[processor_id])
    return detector() if processor_id == "canny" else detector.from_pretrained(model_path).to(device)
