"""The LoRAs of a loaded model, and what methods add to it, as a job wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..lora.loading.load import load_lora, unload_lora
from ..methods.method import resolve
from .building import lora_source, words
from .errors import JobError
from .files import JobFiles
from .job import Job, additions
from .sections import LoRASection


class Adapters:
    """What is loaded into a model's modules: changed when the next job wants something else."""

    def __init__(self) -> None:
        self.loaded: tuple[Any, ...] = ()
        self.added: tuple[tuple[str, Any], ...] = ()

    def bring(self, pipe: Any, job: Job, files: JobFiles, modules: Mapping[str, Any]) -> None:
        """Load the LoRAs of a job and add its additions, in place of those of the job before.

        Args:
            pipe (`FluxPipeline`): A pipeline of the model.
            job (`Job`): The job.
            files ([`JobFiles`]): Its files.
            modules (`Mapping[str, Any]`): The modules of its additions, by name.

        Raises:
            JobError: if one cannot be read or does not fit; nothing is loaded then.
        """
        wanted = tuple(_key(lora, files, f"loras.{index}") for index, lora in enumerate(job.loras))
        added = tuple(sorted(modules.items()))
        if wanted == self.loaded and added == self.added:
            return
        self.take_off(pipe)
        try:
            self._load(pipe, job.loras, files)
            self.loaded = wanted
            for name, module in added:
                self._add(pipe, name, module)
        except BaseException:
            self.take_off(pipe)
            raise

    def take_off(self, pipe: Any) -> None:
        """Leave the model as it was before any job."""
        for name, _ in self.added:
            method, addition = additions()[name]
            resolve(method.package, addition.remove)(pipe)
        unload_lora(pipe)
        self.loaded, self.added = (), ()

    def _load(self, pipe: Any, loras: Sequence[LoRASection], files: JobFiles) -> None:
        for index, lora in enumerate(loras):
            source = lora_source(lora, files, f"loras.{index}")
            # The path of a local file is whole.
            named = None if Path(source).exists() else lora.weight_name
            hub: dict[str, Any] = {} if named is None else {"weight_name": named}
            try:
                load_lora(pipe, source, f"job_{index}", lora.weight, **hub)
            except (OSError, ValueError) as error:
                raise JobError.of(f"loras.{index}.path", words(error)) from error

    def _add(self, pipe: Any, name: str, module: Any) -> None:
        method, addition = additions()[name]
        try:
            resolve(method.package, addition.add)(pipe, module)
        except (TypeError, ValueError) as error:
            raise JobError.of(f"additions.{name}", words(error)) from error
        self.added = (*self.added, (name, module))


def _key(lora: LoRASection, files: JobFiles, place: str) -> tuple[Any, ...]:
    source = Path(lora_source(lora, files, place))
    found = source.stat() if source.exists() else None
    return (str(source), lora.weight_name, lora.weight, found and (found.st_size, found.st_mtime_ns))
