"""InfiniteYou: a person's identity, also several, each in a region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from diffusers import FluxControlNetModel
from diffusers.utils import logging
from PIL import Image

from ...canvas import Canvas
from ...condition import Encoders
from ...denoise import DenoisingStep, PromptEmbeds
from ...former_arguments import former_arguments
from ...inputs.checks import check_instance, shown
from ...inputs.images import read_image
from ...inputs.masks import RegionMask, check_regions
from ...inputs.numbers import check_embeds, read_count, read_number
from ...sequence import Contribution
from ..control.image import encode_control_image
from ..control.residuals import (
    FORMER_NEGATIVE,
    ControlNetCondition,
    Negative,
    mask_channels,
    region_weights,
    residual_contribution,
)
from .faces import FaceEmbedding, FaceEmbeds, FaceEncoder
from .keypoints import Keypoints, draw_face_keypoints, fit_to_canvas, read_keypoints
from .projector import InfiniteYouImageProjector


logger = logging.get_logger(__name__)


@former_arguments(FORMER_NEGATIVE)
@dataclass(frozen=True, eq=False)
class InfiniteYouIdentity(ControlNetCondition):
    """A person's identity by InfuseNet, InfiniteYou ([paper](https://huggingface.co/papers/2503.16418)).

    InfuseNet is a ControlNet that sees identity tokens in place of the text, and five key points of a face as its
    image. Several identities are several conditions: bind each to a `region`, which then gets its residuals
    only. Where regions overlap, residuals add up.

    Args:
        controlnet (`FluxControlNetModel`): InfuseNet.
        image_projector ([`InfiniteYouImageProjector`]): Makes identity tokens from face embeddings.
        id_image (`PIL.Image.Image` or a list of them, *optional*): An image of the person, or one per prompt.
        id_embeds (`torch.Tensor`, `np.ndarray`, `FaceEmbedding` or a list, *optional*):
            ArcFace embeddings in place of `id_image`, `(512,)` for all prompts or `(prompts, 512)`.
        control_image (`PIL.Image.Image` or a list of them, *optional*):
            An image whose face gives the key points; it is resized to the canvas' shorter side and centred.
        keypoints (`torch.Tensor`, `np.ndarray`, lists or a drawing, *optional*):
            Key points in place of `control_image`, `(5, 2)` or `(prompts, 5, 2)`, in pixels or fractions of the
            canvas; see [`FaceEmbedding`]. Or a drawing of them (`PIL.Image.Image`), such as [`draw_face_keypoints`]
            makes, which is taken as it is. Without either, the control image is black: the face may be anywhere.
        face_encoder ([`FaceEncoder`], *optional*): Needed for `id_image` and `control_image`.
        scale (`float` or `Sequence[float]`, defaults to 1.0): Factor of the residuals, or one per block of InfuseNet.
        start (`float`, defaults to 0.0): Start of the window, as a fraction of the steps.
        end (`float`, defaults to 1.0): End of the window, as a fraction of the steps.
        guidance_scale (`float`, defaults to 1.0): InfuseNet's own embedded guidance; the base keeps the call's.
        region (`RegionMask` or a list of them, *optional*): Where the residuals are added; everywhere by default.
        negative (`"same"`, `"own"` or `None`, *optional*):
            What the unconditional branch gets: nothing by default, as in the original; `"own"` is the reference's.
        face_index (`int`, *optional*): Which face of `id_image`, from left to right; the largest by default.

    Raises:
        TypeError: if a module or image has a wrong type.
        ValueError: if arguments are missing, contradict each other or are out of range.
    """

    controlnet: FluxControlNetModel = field(repr=False)
    image_projector: InfiniteYouImageProjector = field(repr=False)
    id_image: Image.Image | Sequence[Image.Image] | None = None
    id_embeds: FaceEmbeds | None = field(default=None, repr=False)
    control_image: Image.Image | Sequence[Image.Image] | None = None
    keypoints: Keypoints | None = field(default=None, repr=False)
    face_encoder: FaceEncoder | None = None
    scale: float | Sequence[float] = 1.0
    start: float = 0.0
    end: float = 1.0
    guidance_scale: float = 1.0
    region: RegionMask | Sequence[RegionMask] | None = field(default=None, repr=False)
    negative: Negative = None
    face_index: int | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        self.check_residual_fields()
        self._check_modules()
        for one, other in (("id_image", "id_embeds"), ("control_image", "keypoints")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"`{one}` of {name} and `{other}` of {name} were both given. Give one of them.")
        if self.id_image is None and self.id_embeds is None:
            raise ValueError(f"`id_image` of {name}, an image of the person, or `id_embeds` of {name} is required.")
        if self.face_encoder is None and (self.id_image is not None or self.control_image is not None):
            raise ValueError(
                f"`face_encoder` of {name} is needed to find the face in an image. Give `InsightFaceEncoder(...)` "
                f"(pip install 'diffusers-flux-ext[infinite-you]'), or give `id_embeds` and `keypoints` instead of "
                f"images."
            )

        if self.face_index is not None:
            read_count(f"`face_index` of {name}", self.face_index, 0, 10**6)
        if self.face_index is not None and self.id_image is None:
            raise ValueError(f"`face_index` of {name} chooses a face of `id_image`, but `id_embeds` was given.")
        if self.region is not None:
            check_regions(f"`region` of {name}", self.region)
        read_number(f"`guidance_scale` of {name}", self.guidance_scale)
        for argument in ("id_image", "control_image"):
            if getattr(self, argument) is not None:
                self._listed(argument)
        if self.id_embeds is not None:
            self._given_embeddings()
        if self.keypoints is not None and not isinstance(self.keypoints, Image.Image):
            read_keypoints(self.keypoints, 1, 1, f"`keypoints` of {name}")

    def _check_modules(self) -> None:
        name, net = type(self).__name__, self.controlnet
        check_instance(
            f"`image_projector` of {name}",
            self.image_projector,
            InfiniteYouImageProjector,
            "`InfiniteYouImageProjector.from_single_file('image_proj_model.bin')` makes one.",
        )
        if self.face_encoder is not None and not isinstance(self.face_encoder, FaceEncoder):
            raise TypeError(
                f"`face_encoder` of {name} is a {type(self.face_encoder).__name__}; expected a "
                f"`FaceEncoder`, such as `InsightFaceEncoder(...)`."
            )
        others = {
            "a union of several modes": net.union and net.config.num_mode,
            "made for inpainting": mask_channels(net) > 0,
            "one of XLabs'": net.input_hint_block is not None,
        }
        wrong = [kind for kind, found in others.items() if found]
        if wrong:
            raise ValueError(
                f"The `controlnet` of {name} is {' and '.join(wrong)}, but InfuseNet is expected. Use the other one "
                f"with `ControlNetImage`."
            )

    def encode(self, pipe: Encoders, canvas: Canvas) -> dict[str, torch.Tensor]:
        """Embed the face and draw the key points.

        Args:
            pipe (`Encoders`): Gives the VAE and the image processor.
            canvas (`Canvas`): Gives the size, the batch and the data type.

        Returns:
            `dict[str, torch.Tensor]`: `"face"` `(1 or num_samples, 512)`, `"control"` `(1 or num_samples,
            num_tokens, 64)`, `"guidance"` `(1,)`; and `"weights"`, see [`region_weights`], if there is a `region`.

        Raises:
            ValueError: if an image shows no face, a shape is wrong, or the ControlNet does not fit.
        """
        self.check_fits_pipeline(pipe, self.image_projector.config.output_dim)
        embeds = self._embeddings().to(canvas.device, canvas.dtype)
        name, people = type(self).__name__, "id_embeds" if self.id_image is None else "id_image"
        places = "keypoints" if self.control_image is None else "control_image"
        encoded = {
            "face": canvas.per_sample(embeds, f"`{people}` of {name}"),
            "control": encode_control_image(
                pipe, canvas, self.controlnet, self._control_images(canvas), names=(f"`{places}` of {name}", "")
            ),
            "guidance": torch.tensor([self.guidance_scale], device=canvas.device),
        }
        if self.region is not None:
            encoded["weights"] = region_weights(f"`region` of {name}", self.region, canvas)
        return encoded

    def prepare(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> dict[str, torch.Tensor]:
        """Project the face to `"identity"`, tokens `(1 or num_samples, tokens, 4096)`, if there are residuals."""
        silent = step.branch == "uncond" and self.negative is None
        return {} if silent else {"identity": self.image_projector(encoded["face"][:, None])}

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """Return InfuseNet's residuals of the step; none outside the window and, by default, on the negative side."""
        if self.is_silent(step):
            return Contribution()
        tokens = encoded["identity"] if "identity" in encoded else self.prepare(encoded, step)["identity"]
        context = PromptEmbeds(
            tokens.expand(step.latents.shape[0], -1, -1),
            step.prompt.pooled,
            step.prompt.ids.new_zeros(tokens.shape[1], 3),
        )
        return residual_contribution(
            self.controlnet,
            step,
            encoded["control"],
            context=context,
            guidance=encoded["guidance"],
            scale=self.scale,
            weights=encoded.get("weights"),
        )

    def _embeddings(self) -> torch.Tensor:
        """Return the embeddings `(1 or prompts, 512)`."""
        if self.id_image is not None:
            return torch.stack([self._face(image, self.face_index).embedding for image in self._listed("id_image")])
        embeds = self._given_embeddings()
        lengths = embeds.norm(dim=-1)
        if not torch.allclose(lengths, torch.ones_like(lengths), atol=0.05):
            logger.warning(
                f"`id_embeds` has the lengths {lengths.tolist()}, but the projector knows ArcFace embeddings of "
                f"length 1. Divide them by their length."
            )
        return embeds

    def _given_embeddings(self) -> torch.Tensor:
        what, width = f"`id_embeds` of {type(self).__name__}", self.image_projector.config.embedding_dim
        given: Any = self.id_embeds
        one = not isinstance(given, (list, tuple)) or all(isinstance(number, Real) for number in given)
        faces = [_as_tensor(getattr(face, "embedding", face)) for face in ([given] if one else given)]
        if one and getattr(faces[0], "ndim", 1) == 2:
            faces = list(faces[0])
        if not faces:
            raise ValueError(f"{what} is empty. Give one embedding for all prompts, or one per prompt.")
        for face in faces:
            check_embeds(what, face, f"({width},), or (prompts, {width})", width)
        return torch.stack(faces).float()

    def _control_images(self, canvas: Canvas) -> list[Image.Image]:
        size = (canvas.width, canvas.height)
        if isinstance(self.keypoints, Image.Image):
            return [self.keypoints.convert("RGB")]
        if self.control_image is not None:
            images = [fit_to_canvas(image, *size) for image in self._listed("control_image")]
            points: list[Any] = [self._face(image, None).keypoints for image in images]
        elif self.keypoints is not None:
            points = read_keypoints(self.keypoints, *size, f"`keypoints` of {type(self).__name__}")
        else:
            return [Image.new("RGB", size)]
        return [draw_face_keypoints(five, *size) for five in points]

    def _face(self, image: Image.Image, index: int | None) -> FaceEmbedding:
        image, encoder = image.convert("RGB"), self.face_encoder
        if encoder is None:
            raise ValueError(f"`face_encoder` of {type(self).__name__} is needed to find a face.")
        return encoder.encode(image) if index is None else encoder.encode(image, int(index))

    def _listed(self, argument: str) -> list[Image.Image]:
        """Return PIL images of a field, as a list."""
        given: Any = getattr(self, argument)
        images = list(given) if isinstance(given, (list, tuple)) else [given]
        if not images or not all(isinstance(each, Image.Image) and 0 not in each.size for each in images):
            raise TypeError(
                f"`{argument}` of {type(self).__name__} must be a PIL image, or a list of one per prompt, got "
                f"{shown(given)}."
            )
        for image in images:
            read_image(f"`{argument}` of {type(self).__name__}", image)
        return images


def _as_tensor(face: Any) -> Any:
    """Convert arrays and lists of floats to tensors; return anything else unchanged."""
    if isinstance(face, (list, tuple)) and face and all(isinstance(number, Real) for number in face):
        return torch.tensor(face, dtype=torch.float32)
    is_array = isinstance(face, np.ndarray) and face.dtype.kind == "f"
    return torch.from_numpy(face) if is_array else face
