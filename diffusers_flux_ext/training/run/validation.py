"""Validation: the loss of held-out samples, a student's distance, and images through the ordinary pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from ...checkpoints.writing import written_at_once
from ...pipeline.conditioned import FluxConditionedPipeline
from ..assemble import BatchMaker, Place
from ..batch import TrainingSample
from ..data import SampleBatch, Visit, stack_samples
from ..distill import DistillationBatchMaker
from ..drawing import draw_sample, drawing_pipeline
from ..draws import Draws
from ..module import FluxTraining


SIGMAS = tuple(place / 8 for place in range(1, 8))


@dataclass(frozen=True)
class ValidationLoss:
    """The unweighted loss of held-out samples, at fixed noise levels and with fixed noise for each sample.

    It differs between two checkpoints through the weights alone, unlike the training loss, whose mean over random
    noise levels hides what is learnt.

    Args:
        training (`FluxTraining`): The module.
        samples (`Sequence[TrainingSample]`): The held-out samples.
        make_batch (`BatchMaker`): Makes batches; nothing is dropped here.
        seed (`int`, defaults to 0): Seed of the noise.
        sigmas (`Sequence[float]`, defaults to eighths): Noise levels.
    """

    training: FluxTraining
    samples: Sequence[TrainingSample]
    make_batch: BatchMaker
    seed: int = 0
    sigmas: Sequence[float] = SIGMAS

    @torch.no_grad()
    def losses(self) -> torch.Tensor:
        """Return the losses.

        Returns:
            `torch.Tensor` of shape `(samples, sigmas)`, on the CPU.
        """
        maker = replace(self.make_batch, draws=Draws(self.seed), levels=self._levels, condition_dropout=())
        device = next(self.training.transformer.parameters()).device
        rows = []
        for sample in self.samples:
            # One sample at a time, so that the result does not depend on how samples are batched.
            stacked = _stacked(self.training, sample)
            batches = [maker(stacked, Place(each, [sample.index], 1)).to(device) for each in range(len(self.sigmas))]
            rows.append(torch.cat([self.training(batch, weighted=False) for batch in batches]).cpu())
        return torch.stack(rows)

    def _levels(self, draws: Draws, update: int, positions: Sequence[int], total: int, tokens: int) -> torch.Tensor:
        return torch.full((len(positions),), float(self.sigmas[update]))

    def __call__(self, step: int) -> dict[str, float]:
        """Return the mean loss, and the mean at each noise level.

        Args:
            step (`int`): Number of finished updates; the result does not depend on it.

        Returns:
            `dict[str, float]`
        """
        losses = self.losses()
        values = {"validation/loss": float(losses.mean())}
        for sigma, mean in zip(self.sigmas, losses.mean(dim=0).tolist()):
            values[f"validation/sigma_{sigma:g}"] = mean
        return values


@dataclass(frozen=True)
class ValidationDistance:
    """How far the whole sampler of a student ends from its teacher's images, from the same noise.

    Args:
        training (`FluxTraining`): The module.
        samples (`Sequence[TrainingSample]`): The held-out samples, with the teacher's paths.
        make_batch (`DistillationBatchMaker`): Makes batches.
        seed (`int`, defaults to 0): Seed of what is drawn, such as an embedded guidance in a range.
    """

    training: FluxTraining
    samples: Sequence[TrainingSample]
    make_batch: DistillationBatchMaker
    seed: int = 0

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """Return the mean squared difference of the latents.

        Args:
            step (`int`): Number of finished updates; the result does not depend on it.

        Returns:
            `dict[str, float]`
        """
        maker = replace(self.make_batch, draws=Draws(self.seed), method="end_to_end")
        device = next(self.training.transformer.parameters()).device
        batches = [maker(_stacked(self.training, each), Place(0, [each.index], 1)) for each in self.samples]
        losses = [self.training.losses(batch.to(device), weighted=False) for batch in batches]
        return {"validation/loss": float(torch.cat(losses).mean())}


def _stacked(training: FluxTraining, sample: TrainingSample) -> SampleBatch:
    text = next((text for text in sample.prompts if text), "")
    plain = replace(sample, preserved=False)
    return stack_samples([plain], (Visit(sample.index, 0),), [text], training.conditions)


@dataclass(frozen=True)
class ValidationImages:
    """Images of some samples, drawn by the ordinary pipeline at fixed seeds.

    Args:
        training (`FluxTraining`): The module, whose transformer and conditions draw.
        vae (`AutoencoderKL`): Decodes.
        scheduler (`FlowMatchEulerDiscreteScheduler`): Gives the noise levels.
        samples (`Sequence[TrainingSample]`): The samples; their own latents are not used.
        folder (`Path`): Where contact sheets go.
        captions (`Sequence[str]`): What to write below each image.
        seed (`int`, defaults to 0): Seed of the first sample; the others follow.
        num_inference_steps (`int`, defaults to 20): Steps.
        guidance_scale (`float`, defaults to 3.5): Embedded guidance.
    """

    training: FluxTraining
    vae: Any
    scheduler: Any
    samples: Sequence[TrainingSample]
    folder: Path
    captions: Sequence[str] = ()
    seed: int = 0
    num_inference_steps: int = 20
    guidance_scale: float = 3.5

    def images(self) -> list[Image.Image]:
        """Draw the images.

        Returns:
            `list[PIL.Image.Image]`
        """
        pipe = drawing_pipeline(self.training.transformer, self.vae, self.scheduler)
        modes = [(module, module.training) for module in self.training.modules()]
        self.training.eval()
        try:
            return [self._image(pipe, sample, self.seed + number) for number, sample in enumerate(self.samples)]
        finally:
            for module, mode in modes:
                module.training = mode

    def _image(self, pipe: FluxConditionedPipeline, sample: TrainingSample, seed: int) -> Image.Image:
        text = next((text for text in sample.prompts if text), "")
        self.training.set_strengths(torch.tensor([sample.strength]))
        images = draw_sample(
            pipe, self.training.conditions, sample, text, num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale, generator=torch.Generator("cpu").manual_seed(seed),
        )  # fmt: skip
        image: Image.Image = images[0]
        return image

    def __call__(self, step: int, average: Callable[[], Any] | None = None) -> list[Path]:
        """Draw the images and write them as a contact sheet, and once more with averaged weights.

        Args:
            step (`int`): Number of finished updates, for the name of the file.
            average (`Callable`, *optional*): Makes a context with averaged weights.

        Returns:
            `list[Path]`: the files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        written = [self._write(self.images(), f"step-{step:08d}.png")]
        if average is not None:
            with average():
                written.append(self._write(self.images(), f"step-{step:08d}-average.png"))
        return written

    def _write(self, images: Sequence[Image.Image], name: str) -> Path:
        with written_at_once(self.folder / name) as path:
            sheet(images, self.captions).save(path, format="PNG")
        return self.folder / name


def sheet(images: Sequence[Image.Image], captions: Sequence[str] = (), cell: int = 256) -> Image.Image:
    """Lay images out in a grid with their captions.

    Args:
        images (`Sequence[PIL.Image.Image]`): The images, of any sizes.
        captions (`Sequence[str]`, *optional*): One per image.
        cell (`int`, defaults to 256): Longer side of an image in pixels.

    Returns:
        `PIL.Image.Image`
    """
    columns, margin, text = max(1, math.ceil(math.sqrt(len(images)))), 8, 20 if captions else 0
    rows = math.ceil(len(images) / columns)
    size = (columns * (cell + margin) + margin, rows * (cell + margin + text) + margin)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for number, image in enumerate(images):
        left = margin + number % columns * (cell + margin)
        top = margin + number // columns * (cell + margin + text)
        scale = cell / max(image.size)
        page.paste(image.resize((round(image.width * scale), round(image.height * scale))), (left, top))
        if number < len(captions):
            draw.text((left, top + cell + 2), captions[number][:44], fill="black", font=ImageFont.load_default(11))
    return page
