"""InfiniteYou: a person's identity, also several, each in a region."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FluxControlNetModel
from diffusers.utils import logging
from PIL import Image

from ...canvas import Canvas
from ...condition import Encoders
from ...denoise import DenoisingStep, PromptEmbeds
from ...inputs.masks import RegionMask
from ...sequence import Contribution
from ..control.call import residual_contribution
from ..control.image import encode_control_picture
from ..control.residuals import ControlNetCondition, Negative, mask_channels, region_weights
from .faces import FaceEmbedding, FaceEncoder
from .keypoints import draw_face_keypoints, fit_picture, read_keypoints
from .projector import InfiniteYouImageProjector


logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class InfiniteYouIdentity(ControlNetCondition):
    """A person's identity by InfuseNet, InfiniteYou ([paper](https://huggingface.co/papers/2503.16418)).

    InfuseNet is a ControlNet that sees identity tokens in the place of the text, and five key points of a face as its
    picture. Several identities are several conditions: bind each to a `region`, so that only its own residuals arrive
    there. Where regions overlap, residuals add up.

    Args:
        controlnet (`FluxControlNetModel`): InfuseNet.
        image_projector ([`InfiniteYouImageProjector`]): Makes identity tokens from face embeddings.
        id_image (`PIL.Image.Image` or a list of them, *optional*): A picture of the person, or one per prompt.
        id_embeds (`torch.Tensor`, `np.ndarray`, `FaceEmbedding` or a list, *optional*):
            ArcFace embeddings in place of `id_image`, `(512,)` for all prompts or `(prompts, 512)`.
        control_image (`PIL.Image.Image` or a list of them, *optional*):
            A picture whose face gives the key points; it is resized to the canvas' shorter side and centred.
        keypoints (`torch.Tensor`, `np.ndarray` or lists, *optional*):
            Key points in place of `control_image`, `(5, 2)` or `(prompts, 5, 2)`, in pixels or fractions of the
            canvas; see [`FaceEmbedding`]. Without either, the control picture is black: the face may be anywhere.
        face_encoder ([`FaceEncoder`], *optional*): Needed for `id_image` and `control_image`.
        scale (`float` or `Sequence[float]`, defaults to 1.0): Factor of the residuals, or one per block of InfuseNet.
        start (`float`, defaults to 0.0): Where it begins, as a fraction of the steps.
        end (`float`, defaults to 1.0): Where it ends, as a fraction of the steps.
        guidance_scale (`float`, defaults to 1.0): InfuseNet's own embedded guidance; the base keeps the call's.
        region (`RegionMask` or a list of them, *optional*): Where the residuals are added; everywhere by default.
        negative (`"shared"`, `"own"` or `None`, *optional*):
            What the unconditional branch gets: nothing by default, as in the original; `"own"` is the reference's.
        face_index (`int`, *optional*): Which face of `id_image`, from left to right; the largest by default.

    Raises:
        TypeError: if a module or picture has a wrong type.
        ValueError: if arguments are missing, contradict each other or are out of range.
    """

    controlnet: FluxControlNetModel = field(repr=False)
    image_projector: InfiniteYouImageProjector = field(repr=False)
    id_image: Image.Image | Sequence[Image.Image] | None = None
    id_embeds: Any = field(default=None, repr=False)
    control_image: Image.Image | Sequence[Image.Image] | None = None
    keypoints: Any = field(default=None, repr=False)
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
                raise ValueError(f"{name} has both `{one}` and `{other}`. Give one of them.")
        if self.id_image is None and self.id_embeds is None:
            raise ValueError(f"{name} needs `id_image`, a picture of the person, or `id_embeds`.")
        if self.face_encoder is None and (self.id_image is not None or self.control_image is not None):
            raise ValueError(
                f"{name} needs a `face_encoder` to find the face in a picture: `InsightFaceEncoder(...)` (pip install "
                f"'diffusers-flux-ext[infinite-you]'), or give `id_embeds` and `keypoints` instead of pictures."
            )

        if self.face_index is not None and self.id_image is None:
            raise ValueError(f"`face_index` of {name} chooses a face of `id_image`, but `id_embeds` came.")
        if self.keypoints is not None:
            read_keypoints(self.keypoints, 1, 1)

    def _check_modules(self) -> None:
        name, net = type(self).__name__, self.controlnet
        if not hasattr(getattr(self.image_projector, "config", None), "embedding_dim"):
            raise TypeError(
                f"`image_projector` of {name} is a {type(self.image_projector).__name__}; expected an "
                f"`InfiniteYouImageProjector`."
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
            ValueError: if a picture shows no face, a shape is wrong, or the ControlNet does not fit.
        """
        self.check_fits_pipeline(pipe, self.image_projector.config.output_dim)
        embeds = self._embeddings().to(canvas.device, canvas.dtype)
        encoded = {
            "face": canvas.per_sample(embeds),
            "control": encode_control_picture(pipe, canvas, self.controlnet, self._control_pictures(canvas)),
            "guidance": torch.tensor([self.guidance_scale], device=canvas.device),
        }
        if self.region is not None:
            encoded["weights"] = region_weights(type(self).__name__, self.region, canvas)
        return encoded

    def prepare(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> dict[str, torch.Tensor]:
        """Identity tokens `(1 or num_samples, tokens, 4096)` as `"identity"`; nothing where there is no residual."""
        silent = step.branch == "uncond" and self.negative is None
        return {} if silent else {"identity": self.image_projector(encoded["face"][:, None])}

    def contribute(self, encoded: Mapping[str, torch.Tensor], step: DenoisingStep) -> Contribution:
        """InfuseNet's residuals of this step; empty outside of the window and, by default, on the negative side."""
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
        """`(1 or prompts, 512)`."""
        if self.id_image is not None:
            return torch.stack([self._face(picture, self.face_index).embedding for picture in _listed(self.id_image)])
        given = self.id_embeds
        if isinstance(given, (list, tuple, FaceEmbedding)):
            given = torch.stack([torch.as_tensor(getattr(face, "embedding", face)) for face in _listed(given)])
        given = torch.as_tensor(given)
        width = self.image_projector.config.embedding_dim
        if given.ndim not in (1, 2) or given.shape[-1] != width:
            raise ValueError(
                f"`id_embeds` has the shape {tuple(given.shape)}; expected ({width},), or (prompts, {width})."
            )
        embeds = (given if given.ndim == 2 else given[None]).float()
        lengths = embeds.norm(dim=-1)
        if not torch.allclose(lengths, torch.ones_like(lengths), atol=0.05):
            logger.warning(
                f"`id_embeds` has the lengths {lengths.tolist()}, but the projector knows ArcFace embeddings of "
                f"length 1. Divide them by their length."
            )
        return embeds

    def _control_pictures(self, canvas: Canvas) -> list[Image.Image]:
        size = (canvas.width, canvas.height)
        if self.control_image is not None:
            pictures = [fit_picture(picture, *size) for picture in _listed(self.control_image)]
            points: list[Any] = [self._face(picture, None).keypoints for picture in pictures]
        elif self.keypoints is not None:
            points = read_keypoints(self.keypoints, *size)
        else:
            return [Image.new("RGB", size)]
        return [draw_face_keypoints(five, *size) for five in points]

    def _face(self, picture: Any, index: int | None) -> FaceEmbedding:
        if not isinstance(picture, Image.Image):
            raise TypeError(
                f"`id_image` and `control_image` are PIL pictures, but one of type {type(picture).__name__} came."
            )
        picture = picture.convert("RGB")
        encoder: Any = self.face_encoder
        return encoder.encode(picture) if index is None else encoder.encode(picture, index)


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [given]
