"""What all stages share: where files go, the seed, the device and how long each stage runs."""

import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Amounts:
    """How much of everything; the defaults are the full recipe.

    Args:
        vae_steps (`int`): Steps of the VAE; the last quarter uses whole images.
        text_steps (`int`): Steps of the text encoders' pretraining.
        latents (`int`): Encoded scenes of the named layouts; half as many of each free kind.
        flow_steps (`int`): Steps of the transformer.
        eligen_steps (`int`): Steps of the EliGen LoRA.
        batch_size (`int`): Images per step of the transformer and of the LoRA.
        test_scenes (`int`): Scenes that are drawn and scored.
        inference_steps (`int`): Steps of each drawing.
    """

    vae_steps: int = 6000
    text_steps: int = 2500
    latents: int = 30_000
    flow_steps: int = 10_000
    eligen_steps: int = 7000
    batch_size: int = 32
    test_scenes: int = 64
    inference_steps: int = 20


QUICK = Amounts(
    vae_steps=12,
    text_steps=12,
    latents=32,
    flow_steps=6,
    eligen_steps=6,
    batch_size=4,
    test_scenes=2,
    inference_steps=2,
)
"""Enough to see that every stage runs; nothing is learnt."""


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Args:
        out (`Path`): Folder of all results.
        seed (`int`, defaults to 0): Fixes every draw.
        device (`str`, defaults to `"cpu"`): Where to train.
        compile (`bool`, defaults to `False`): Whether to compile the transformer for training.
        checkpoint_every (`int`, defaults to 200): Steps between checkpoints.
        amounts (`Amounts`): How much of everything.
    """

    out: Path
    seed: int = 0
    device: str = "cpu"
    compile: bool = False
    checkpoint_every: int = 200
    amounts: Amounts = field(default_factory=Amounts)

    @property
    def tokenizers(self) -> Path:
        """Folder with `tokenizer` and `tokenizer_2`."""
        return self.out / "tokenizers"

    @property
    def vae(self) -> Path:
        """Folder of the trained VAE."""
        return self.out / "vae"

    @property
    def text_encoders(self) -> Path:
        """Folder with the pretrained `text_encoder` and `text_encoder_2`."""
        return self.out / "text_encoders"

    @property
    def pipeline(self) -> Path:
        """Folder of the finished `FluxPipeline`."""
        return self.out / "tiny_flux"

    @property
    def lora(self) -> Path:
        """File of the finished EliGen LoRA."""
        return self.out / "tiny_flux_eligen_lora.safetensors"

    @property
    def scores(self) -> Path:
        """File of the scores."""
        return self.out / "scores.json"

    def latents(self, kind: str) -> Path:
        """Return file of the encoded scenes of one kind: `"named"`, `"free_1"`, `"free_2"` or `"free_3"`."""
        return self.out / "latents" / f"{kind}.safetensors"

    def checkpoint(self, stage: str) -> Path:
        """Return checkpoint of a stage."""
        return self.out / "checkpoints" / f"{stage}.safetensors"


@dataclass(frozen=True)
class Draws:
    """Random sources of one step. A step's draws depend on its number only, so that a resumed run repeats nothing.

    Args:
        rng (`random.Random`): For scenes and texts.
        generator (`torch.Generator`): For tensors, on the CPU.
    """

    rng: random.Random
    generator: torch.Generator

    @classmethod
    def of(cls, settings: Settings, stage: str, step: int) -> "Draws":
        """Return the sources of step number `step` of a stage."""
        number = zlib.crc32(f"{settings.seed}/{stage}/{step}".encode())
        return cls(random.Random(number), torch.Generator().manual_seed(number))

    def normal(self, *shape: int) -> torch.Tensor:
        """Return standard normal numbers."""
        return torch.randn(*shape, generator=self.generator)
