"""The teacher's paths on disk: each made once, under a name of what it depends on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...checkpoints.reading import open_safetensors
from ...checkpoints.writing import save_tensors
from ..batch import TeacherPath, TrainingSample
from ..data.cache import CachedSamples
from ..data.cache.keys import digest
from ..draws import Draws
from .levels import StudentLevels
from .teacher import Teacher, TeacherOptions


VERSION = 2
FOLDER = "paths"
"""The folder of the paths in that of a cache."""


@dataclass(frozen=True, eq=False)
class TeacherPaths:
    """The paths of a teacher through the samples of a cache. It can be sent to other processes.

    Args:
        samples (`CachedSamples`): The samples.
        options (`TeacherOptions`): How the teacher draws.
        num_steps (`int`): Steps between whose borders states are noted; with one step, its two ends alone.
        seed (`int`): Seed of the noise.
        noises (`int`): How many different noises a sample has, which its visits take in turn.
        facts (`Sequence[Any]`): What else a path depends on, such as hashes of the teacher's weights.
    """

    samples: CachedSamples
    options: TeacherOptions
    num_steps: int
    seed: int
    noises: int
    facts: Sequence[Any] = ()

    def key(self, index: int, epoch: int, text: str) -> str:
        """Return the name of a path.

        Args:
            index (`int`): The sample's number.
            epoch (`int`): Which visit.
            text (`str`): Which caption.

        Returns:
            `str`
        """
        content = self.samples.content(index, epoch, text)
        drawn = [asdict(self.options), self.num_steps, self.seed, epoch % self.noises]
        return digest([VERSION, "path", content, drawn, list(self.facts)])

    def file(self, key: str) -> Path:
        """Return the file of a path."""
        return self.samples.folder / FOLDER / f"{key}.safetensors"

    def read(self, index: int, epoch: int, text: str) -> TeacherPath:
        """Read a path; arguments as of [`key`].

        Returns:
            `TeacherPath`

        Raises:
            FileNotFoundError: if it has not been made.
        """
        path = self.file(self.key(index, epoch, text))
        if not path.is_file():
            raise FileNotFoundError(
                f"The teacher's path `{path}` is missing. Start the run again, which makes what is missing."
            )
        with open_safetensors(path) as file:
            return TeacherPath(file.get_tensor("states"), file.get_tensor("sigmas"))

    def missing(self, visits: Iterable[tuple[int, int, str]]) -> dict[str, tuple[int, int, str]]:
        """Return the visits whose paths have not been made, each path once, by its name.

        Args:
            visits (`Iterable[tuple[int, int, str]]`): Samples, epochs and captions.

        Returns:
            `dict[str, tuple[int, int, str]]`
        """
        found = {self.key(*visit): visit for visit in visits}
        return {key: visit for key, visit in found.items() if not self.file(key).is_file()}

    def make(
        self,
        teacher: Teacher,
        visits: dict[str, tuple[int, int, str]],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Let the teacher draw, and write each path when it is complete.

        Args:
            teacher (`Teacher`): The teacher that `options` and `facts` describe.
            visits (`dict[str, tuple[int, int, str]]`): What to draw, as of [`missing`].
            on_progress (`Callable`, *optional*): Called with the numbers of done and of all paths.

        Raises:
            OSError: if a file cannot be written.
            FloatingPointError: if what the teacher draws is not finite.
        """
        (self.samples.folder / FOLDER).mkdir(parents=True, exist_ok=True)
        for done, (key, (index, epoch, text)) in enumerate(visits.items(), 1):
            sample = self.samples.sample(index, epoch, [text])
            content = int(self.samples.content(index, epoch, text)[0][:12], 16)
            noise = Draws(self.seed).normal("noise of paths", content, epoch % self.noises, shape=sample.latents.shape)
            path = teacher.path(sample, text, noise)
            if not bool(path.states.isfinite().all()):
                raise FloatingPointError(
                    f"The teacher's latents for the sample {index}, {text[:60]!r}, are not finite "
                    f"and not written. Check the scheduler (`shift_terminal` needs several steps), or use float32."
                )
            save_tensors({"states": path.states, "sigmas": path.sigmas}, self.file(key))
            if on_progress is not None:
                on_progress(done, len(visits))


@dataclass(frozen=True, eq=False)
class DistilledSamples:
    """Cached samples with the teacher's paths; see [`Samples`].

    Args:
        samples (`CachedSamples`): The samples.
        paths (`TeacherPaths`): The paths, which have been made.
        levels (`StudentLevels`, *optional*):
            The student's steps, where the paths have their ends alone and serve students of any number of steps.
    """

    samples: CachedSamples
    paths: TeacherPaths
    levels: StudentLevels | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> Hashable:
        """Return the bucket of a sample."""
        return self.samples.key(index)

    def texts(self, index: int) -> list[str]:
        """Return all captions of a sample, without the empty one."""
        return self.samples.texts(index)

    def sample(self, index: int, epoch: int = 0, texts: Sequence[str] | None = None) -> TrainingSample:
        """Read a sample, and the path of the first of its captions; arguments as of [`CachedSamples.sample`]."""
        chosen = [first_text(self.samples.texts(index))] if texts is None else texts
        sample = self.samples.sample(index, epoch, chosen)
        path = self.paths.read(index, epoch, chosen[0])
        if self.levels is not None:
            path = replace(path, sigmas=self.levels.borders(sample.height, sample.width))
        return replace(sample, path=path)

    def fetch(self, index: int, epoch: int, texts: Sequence[str]) -> TrainingSample:
        """Read a sample in a loader's process."""
        return self.sample(index, epoch, texts)

    def finish(self, fetched: Any, texts: Sequence[str]) -> TrainingSample:
        """Return what `fetch` returned."""
        sample: TrainingSample = fetched
        return sample


def first_text(texts: Sequence[str]) -> str:
    """Return the caption that stands for a sample in validation; empty if it has none."""
    return next((text for text in texts if text), "")
