"""InfiniteYou as a named pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FluxControlNetModel,
)
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from PIL import Image

from ...condition import FluxCondition, check_conditions
from ...inputs.masks import RegionMask
from ...pipeline.components import PipelineT, extends_call, extends_init, renames_errors
from ...pipeline.conditioned import FluxConditionedPipeline
from ..control.model import FluxExtControlNetModel
from ..control.residuals import Negative
from .condition import InfiniteYouIdentity
from .faces import FaceEmbeds, FaceEncoder
from .keypoints import Keypoints
from .projector import InfiniteYouImageProjector


_DEFAULTS: dict[str, Any] = {
    "num_inference_steps": 30,
    "guidance_scale": 3.5,
    "id_guidance_scale": 1.0,
    "controlnet_conditioning_scale": 1.0,
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
}
# Both are published with the same settings; for `sim_stage1` a start of 0.1 may help.
_PRESETS: dict[str, dict[str, Any]] = {"aes_stage2": {}, "sim_stage1": {}}
_FIELDS = {
    "id_guidance_scale": "guidance_scale",
    "controlnet_conditioning_scale": "scale",
    "control_guidance_start": "start",
    "control_guidance_end": "end",
}


def infinite_you_preset(name: str) -> dict[str, Any]:
    """Return the arguments of the call for a published variant ([model card](https://huggingface.co/ByteDance/InfiniteYou)).

    Args:
        name (`str`): `"aes_stage2"` (better looking, follows the text) or `"sim_stage1"` (more alike).

    Returns:
        `dict[str, Any]`: steps, scales and window, for `pipe(prompt, id_image=..., **infinite_you_preset(name))`.

    Raises:
        ValueError: if there is no such variant; the message lists them.
    """
    if name not in _PRESETS:
        raise ValueError(f"There is no variant {name!r} of InfiniteYou. Choose one of {sorted(_PRESETS)}.")
    return {**_DEFAULTS, **_PRESETS[name]}


def _refuse_without_identity(arguments: Mapping[str, Any]) -> None:
    given = []
    for name, value in arguments.items():
        default = _DEFAULTS.get(name)
        if value is not default and not (isinstance(value, Real) and value == default):
            given.append(f"`{name}`")
    if given:
        raise ValueError(f"{', '.join(given)} was given without an identity. Give `id_image` or `id_embeds`, too.")


class FluxInfiniteYouPipeline(FluxConditionedPipeline):
    r"""FLUX.1 with a person's identity, InfiniteYou ([paper](https://huggingface.co/papers/2503.16418)).

    Args:
        scheduler, vae, text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer: As for its base class.
        image_encoder, feature_extractor: As for its base class.
        controlnet ([`~diffusers.FluxControlNetModel`] or [`FluxExtControlNetModel`], *optional*): InfuseNet.
        image_projector ([`InfiniteYouImageProjector`], *optional*): Makes identity tokens from a face embedding.
        face_encoder ([`FaceEncoder`], *optional*):
            Finds the face in images; a plain object, which is not saved with the pipeline. Embeddings and key
            points do without it.

    Example:
    ```py
    >>> import torch
    >>> from diffusers.utils import load_image
    >>> from diffusers_flux_ext import (
    ...     FluxExtControlNetModel,
    ...     FluxInfiniteYouPipeline,
    ...     InfiniteYouImageProjector,
    ...     InsightFaceEncoder,
    ...     infinite_you_preset,
    ... )

    >>> folder = "InfiniteYou/infu_flux_v1.0/aes_stage2"
    >>> pipe = FluxInfiniteYouPipeline.from_pretrained(
    ...     "black-forest-labs/FLUX.1-dev",
    ...     controlnet=FluxExtControlNetModel.from_pretrained(f"{folder}/InfuseNetModel", torch_dtype=torch.bfloat16),
    ...     image_projector=InfiniteYouImageProjector.from_single_file(
    ...         f"{folder}/image_proj_model.bin", torch_dtype=torch.bfloat16
    ...     ),
    ...     face_encoder=InsightFaceEncoder(
    ...         "recognition_arcface_ir_se50.pth", root="InfiniteYou/supports/insightface"
    ...     ),
    ...     dtype=torch.bfloat16,
    ... )
    >>> pipe.enable_model_cpu_offload()
    >>> image = pipe(
    ...     "a woman, portrait, cinematic", id_image=load_image("her.png"), **infinite_you_preset("aes_stage2")
    ... ).images[0]
    ```
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->image_encoder->image_projector->transformer->vae"
    _loop_components = ("transformer", "controlnet")
    _optional_components = [*FluxConditionedPipeline._optional_components, "controlnet", "image_projector"]

    @extends_init(FluxConditionedPipeline)
    def __init__(
        self,
        *args: Any,
        controlnet: FluxControlNetModel | FluxExtControlNetModel = None,
        image_projector: InfiniteYouImageProjector = None,  # type: ignore[assignment]
        face_encoder: FaceEncoder | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.register_modules(controlnet=controlnet, image_projector=image_projector)
        self.face_encoder = face_encoder

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> DiffusionPipeline:
        """See [`FluxConditionedPipeline.from_pipe`]; a face encoder is passed on."""
        if getattr(pipeline, "face_encoder", None) is not None:
            kwargs.setdefault("face_encoder", pipeline.face_encoder)
        return super().from_pipe(pipeline, **kwargs)

    def to_pipeline(self, pipeline_class: type[PipelineT], **kwargs: Any) -> PipelineT:
        """See [`FluxConditionedPipeline.to_pipeline`]; a face encoder is passed on if the class takes one."""
        if issubclass(pipeline_class, FluxInfiniteYouPipeline):
            kwargs.setdefault("face_encoder", self.face_encoder)
        return super().to_pipeline(pipeline_class, **kwargs)

    @extends_call(FluxConditionedPipeline)
    @renames_errors(InfiniteYouIdentity, **{field: name for name, field in _FIELDS.items()})
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        id_image: Image.Image | Sequence[Image.Image] | None = None,
        id_embeds: FaceEmbeds | None = None,
        control_image: Image.Image | Sequence[Image.Image] | None = None,
        id_guidance_scale: float = 1.0,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        keypoints: Keypoints | None = None,
        face_index: int | None = None,
        region: RegionMask | Sequence[RegionMask] | None = None,
        negative: Negative = None,
        conditions: Sequence[FluxCondition] | None = None,
        **kwargs: Any,
    ) -> FluxPipelineOutput | tuple:
        r"""Generate images of a person.

        Args:
            args, kwargs: As for [`FluxConditionedPipeline.__call__`].
            id_image (`PIL.Image.Image` or a list of them, *optional*):
                An image of the person, or one per prompt. Without an identity the pipeline is
                [`FluxConditionedPipeline`].
            id_embeds (`torch.Tensor`, `FaceEmbedding` or a list, *optional*):
                ArcFace embeddings in place of `id_image`, `(512,)` or `(prompts, 512)`.
            control_image (`PIL.Image.Image` or a list of them, *optional*):
                An image whose face gives place, size and direction of the face drawn.
            id_guidance_scale (`float`, *optional*, defaults to 1.0): InfuseNet's own embedded guidance.
            controlnet_conditioning_scale (`float` or `Sequence[float]`, *optional*, defaults to 1.0):
                How strong the identity is; one number, or one per block of InfuseNet.
            control_guidance_start (`float`, *optional*, defaults to 0.0): Fraction of the steps where it begins.
            control_guidance_end (`float`, *optional*, defaults to 1.0): Fraction of the steps where it ends.
            keypoints (`torch.Tensor`, `np.ndarray` or lists, *optional*):
                Key points in place of `control_image`, as in [`InfiniteYouIdentity`].
            face_index (`int`, *optional*): Which face of `id_image`, from left to right; the largest by default.
            region (`RegionMask` or a list of them, *optional*): Where the identity acts; everywhere by default.
            negative (`"same"`, `"own"` or `None`, *optional*):
                What the unconditional branch gets of the identity: nothing by default.
            conditions (`Sequence[FluxCondition]`, *optional*): Further conditions, also further identities.

        Returns:
            [`~diffusers.pipelines.flux.FluxPipelineOutput`] or `tuple`

        Raises:
            ValueError: if a component or an argument is missing, arguments of an identity were given without one, or
            an
                image shows no face.
        """
        conditions = check_conditions(conditions)
        arguments: dict[str, Any] = {
            "control_image": control_image,
            "id_guidance_scale": id_guidance_scale,
            "controlnet_conditioning_scale": controlnet_conditioning_scale,
            "control_guidance_start": control_guidance_start,
            "control_guidance_end": control_guidance_end,
            "keypoints": keypoints,
            "face_index": face_index,
            "region": region,
            "negative": negative,
        }
        if id_image is not None or id_embeds is not None:
            named = {_FIELDS.get(name, name): value for name, value in arguments.items()}
            conditions.insert(0, self._identity(id_image=id_image, id_embeds=id_embeds, **named))
        else:
            _refuse_without_identity(arguments)
        kwargs["conditions"] = conditions
        return super().__call__(*args, **kwargs)

    def _identity(self, **arguments: Any) -> InfiniteYouIdentity:
        missing = [name for name in ("controlnet", "image_projector") if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"The pipeline has no {missing}, which an identity needs. Pass them to `from_pretrained` or "
                f"`from_pipe`: the InfuseNet and the `InfiniteYouImageProjector` of one published variant."
            )
        return InfiniteYouIdentity(self.controlnet, self.image_projector, face_encoder=self.face_encoder, **arguments)
