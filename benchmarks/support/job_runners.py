"""Runners that stand for `JobRunner` where drawing is not the point; workers of other processes import them."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image


class ColorRunner:
    """Draws an image whose colour is that of the prompt, and notes what it draws.

    Prompts say what else happens: `raise ...` fails, `kill ...` ends the process, `kill once ...` does so the first
    time, `sleep N ...` takes N seconds, and `sleep once N ...` does so the first time.

    Args:
        log (`str`, *optional*): A file that gets a line for each job that is begun.
        size (`int`): Pixels of a side.
        seconds (`float`): How long each takes.
    """

    def __init__(self, log: str | None = None, size: int = 16, seconds: float = 0.0) -> None:
        self.log, self.size, self.seconds = log, size, seconds

    def run(self, job: Any, files: Any, on_step: Any = None) -> Any:
        prompt = job.call.prompt
        earlier = self._note(prompt)
        words = prompt.split()
        if words[0] == "raise":
            raise RuntimeError("out of luck")
        if words[0] == "kill" and not (words[1] == "once" and earlier):
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait()
        if words[0] == "sleep" and not (words[1] == "once" and earlier):
            time.sleep(float(words[1] if words[1] != "once" else words[2]))
        time.sleep(self.seconds)
        color: Any = tuple(hashlib.sha256(prompt.encode()).digest()[:3])
        return SimpleNamespace(images=[Image.new("RGB", (self.size, self.size), color)], seeds=[0], seconds=0.0)

    def _note(self, prompt: str) -> int:
        """Note that a job is begun; return how often it was before."""
        if self.log is None:
            return 0
        path = Path(self.log)
        before = path.read_text().splitlines().count(prompt) if path.exists() else 0
        with path.open("a") as log:
            log.write(f"{prompt}\n")
        return before


class NotingRunner:
    """A `JobRunner` on the CPU that notes what it begins.

    Args:
        log (`str`): A file that gets a line for each job that is begun.
    """

    def __init__(self, log: str) -> None:
        from diffusers_flux_ext.jobs import JobRunner

        self.log, self.runner = log, JobRunner(device="cpu")

    def run(self, job: Any, files: Any, on_step: Any = None) -> Any:
        with Path(self.log).open("a") as log:
            log.write(f"{job.call.seed.root}\n")
        return self.runner.run(job, files, on_step=on_step)


class NoiseRunner:
    """Draws 1024 x 1024 pixels at once that compress about as badly as a photograph."""

    def __init__(self) -> None:
        import torch

        rough = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        pixels = torch.nn.functional.interpolate(rough, size=(1024, 1024), mode="bicubic")[0]
        pixels = pixels + 0.02 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
        self.image = Image.fromarray((pixels.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())

    def run(self, job: Any, files: Any, on_step: Any = None) -> Any:
        return SimpleNamespace(images=[self.image], seeds=[0], seconds=0.0)
