"""What a call of a pipeline of diffusers shows before its loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...canvas import Canvas, pack_latents
from .replacement import Replacement


def _named(owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments by their names in the class, since what a user has put in place of a method may lack them."""
    bound = inspect.signature(getattr(type(owner), name)).bind(owner, *args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


@dataclass
class CallRecord:
    """What is known of one call.

    Args:
        num_branches (`int`): Encoded prompts so far; a second one is the negative prompt.
        num_images_per_prompt (`int`): Images per prompt.
        max_sequence_length (`int`): Text tokens of a prompt.
        latents (`dict[str, Any]`, *optional*): Arguments of `prepare_latents`, by name.
        noise (`torch.Tensor` of shape `(num_samples, num_tokens, 64)`, *optional*): The packed noise, where known.
    """

    num_branches: int = 0
    num_images_per_prompt: int = 1
    max_sequence_length: int = 512
    latents: dict[str, Any] | None = None
    noise: torch.Tensor | None = None

    @property
    def is_guided(self) -> bool:
        """Whether there is an unconditional branch."""
        return self.num_branches > 1

    @property
    def latent_width(self) -> int:
        """Channels of a token of the canvas, without what else the transformer takes."""
        return 4 * self.latents["num_channels_latents"] if self.latents is not None else 64

    def note_prompt(self, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the numbers that `encode_prompt` of the pipeline is given."""
        given = _named(pipe, "encode_prompt", args, kwargs)
        self.num_branches += 1
        self.num_images_per_prompt = given["num_images_per_prompt"] or 1
        self.max_sequence_length = given["max_sequence_length"]

    def prepare_latents(
        self, pipe: Any, prepare: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run `prepare_latents` of the pipeline, and note the canvas and the noise.

        Args:
            pipe (`DiffusionPipeline`): The pipeline.
            prepare (`Callable`): The method.
            args (`tuple`): Arguments of the method.
            kwargs (`dict[str, Any]`): Its arguments by name.
        """
        self.latents, mixed = _named(pipe, "prepare_latents", args, kwargs), []

        def note(mix: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            mixed.append(_named(pipe.scheduler, "scale_noise", args, kwargs)["noise"])
            return mix(*args, **kwargs)

        if "timestep" not in self.latents:
            result = prepare(*args, **kwargs)
            # Without an image, what the loop starts from is noise.
            self.noise = result[0]
            return result
        # Image-to-image mixes the noise into the image's latents.
        replacement = Replacement(pipe.scheduler, "scale_noise", note)
        try:
            result = prepare(*args, **kwargs)
        finally:
            replacement.restore()
        self.noise = pack_latents(mixed[0]) if mixed else None
        return result

    def canvas(self, pipe: Any) -> Canvas:
        """Return the canvas of the call.

        Args:
            pipe (`DiffusionPipeline`): Gives the size of tokens.
        """
        given, token = self.latents or {}, 2 * pipe.vae_scale_factor
        return Canvas(
            height=int(given["height"]) // token * token,
            width=int(given["width"]) // token * token,
            batch_size=given["batch_size"] // self.num_images_per_prompt,
            num_images_per_prompt=self.num_images_per_prompt,
            device=torch.device(given["device"]),
            dtype=given["dtype"],
            token_size=token,
            max_sequence_length=self.max_sequence_length,
            noise=self.noise,
            guided=self.is_guided,
        )
