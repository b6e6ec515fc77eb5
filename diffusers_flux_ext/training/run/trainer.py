"""The loop over updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers.utils import logging
from torch.distributed.fsdp import FSDPModule

from ...checkpoints.writing import save_tensors
from ..assemble import BatchMaker, Place
from ..batch import TrainingBatch
from ..checkpoint import Checkpoint, CheckpointFolder, StopRequest, pack_state, unpack_state
from ..data.loader import SampleBatch
from ..module import FluxTraining
from ..optim import FusedBackward, averaged_weights, clip_gradients, set_rates
from ..trained.protocol import Trained, state_of
from .monitor import Monitor
from .sharding import shared_states, summing


logger = logging.get_logger(__name__)

MicroBatch = tuple[SampleBatch, Place]


class Updates(Protocol):
    """Gives the batches of each update; the same ones whenever it is asked."""

    def batches(self, update: int) -> Iterable[MicroBatch]:
        """Return this process's batches of an update, as samples and their places.

        Args:
            update (`int`): Its number; updates are asked for in order.
        """


class Average(Protocol):
    """An average of the trained parameters."""

    def update(self, step: int) -> None:
        """Take the parameters after update number `step`, from 0."""

    def applied(self) -> AbstractContextManager[None]:
        """Replace the parameters by their averages inside this context."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averages by name."""

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over averages."""


class ConfigurationChangedError(ValueError):
    """A run was to be resumed under another configuration."""


@dataclass(frozen=True)
class RunSettings:
    """How long a run is and what happens when.

    Args:
        updates (`int`): Number of updates.
        clip (`float`, *optional*, defaults to 1.0): Largest norm of the gradient; `None` does not clip.
        save_every (`int`, defaults to 250): Updates between checkpoints; the last update is always saved.
        validate_every (`int`, defaults to 0): Updates between validations; 0 never validates.
        stop_after_bad (`int`, defaults to 10):
            How many updates in a row may be skipped because their gradient is not finite.
        fused (`bool`, defaults to `False`):
            Whether each parameter is stepped within the backward pass, which frees its gradient at once; see
            [`FusedBackward`]. The norm of the gradient is unknown then, and updates are skipped by their loss.
    """

    updates: int
    clip: float | None = 1.0
    save_every: int = 250
    validate_every: int = 0
    stop_after_bad: int = 10
    fused: bool = False


class Trainer:
    """Trains a [`FluxTraining`] module, resumes where a run stopped, and stops when the system asks for it.

    Args:
        training (`FluxTraining`): The module.
        trained (`Trained`): The trained parameters.
        optimizers (`Sequence[torch.optim.Optimizer]`): Their groups' learning rates are the peaks.
        updates (`Updates`): Gives the samples.
        make_batch (`BatchMaker`): Makes batches of them.
        settings (`RunSettings`): The length of the run.
        checkpoints (`CheckpointFolder`): Where checkpoints are.
        configuration (`Mapping[str, Any]`): What determines the result; a run resumes under the same one only.
        schedule (`Callable[[int], float]`, *optional*): Maps the number of an update to a factor of the rates.
        average (`Average`, *optional*): Average of the trained parameters.
        monitor (`Monitor`, *optional*): Takes the numbers.
        validate (`Callable[[int], Mapping[str, float]]`, *optional*): Validates after some updates.
        accelerator (`accelerate.Accelerator`, *optional*): For several processes; one process needs none.
    """

    def __init__(
        self,
        training: FluxTraining,
        trained: Trained,
        optimizers: Sequence[torch.optim.Optimizer],
        updates: Updates,
        make_batch: BatchMaker,
        settings: RunSettings,
        checkpoints: CheckpointFolder,
        configuration: Mapping[str, Any],
        schedule: Callable[[int], float] = lambda update: 1.0,
        average: Average | None = None,
        monitor: Monitor | None = None,
        validate: Callable[[int], Mapping[str, float]] | None = None,
        accelerator: Any = None,
    ) -> None:
        self.training, self.trained, self.optimizers = training, trained, list(optimizers)
        self.updates, self.make_batch, self.settings = updates, make_batch, settings
        self.checkpoints, self.configuration = checkpoints, dict(configuration)
        self.schedule, self.average, self.monitor = schedule, average, monitor or Monitor()
        self.validate, self.accelerator = validate, accelerator
        self.step, self.skipped, self._bad_in_a_row = 0, 0, 0
        self._made: list[TrainingBatch] = []
        self._fused = FusedBackward(self.optimizers, max_grad_norm=settings.clip) if settings.fused else None
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group.setdefault("peak_lr", group["lr"])
        self.is_sharded = isinstance(training, FSDPModule)
        alone = accelerator is None or self.is_sharded
        self._module: Any = training if alone else accelerator.prepare(training)
        self._device = next(training.transformer.parameters()).device if accelerator is None else accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator is None or bool(self.accelerator.is_main_process)

    def resume(self) -> bool:
        """Continue from the newest checkpoint, if there is one.

        Returns:
            `bool`: whether there is one.

        Raises:
            ConfigurationChangedError: if it belongs to another configuration; the differences are named.
            ValueError: if it is damaged or belongs to other parameters.
        """
        checkpoint = self.checkpoints.load()
        if checkpoint is None:
            return False
        check_configuration(checkpoint.state["configuration"], self.configuration, str(checkpoint.path))
        self._load(checkpoint)
        return True

    def run(self) -> bool:
        """Run the remaining updates.

        Returns:
            `bool`: whether all updates are done; false if the system asked to stop, and a checkpoint was written.

        Raises:
            FloatingPointError: if too many updates in a row have a gradient that is not finite.
            OSError: if a checkpoint cannot be written.
        """
        with StopRequest() as stop:
            while self.step < self.settings.updates:
                self._update(self.step)
                self.step += 1
                stopping = self._agrees(bool(stop))
                if stopping or self.step == self.settings.updates or self.step % self.settings.save_every == 0:
                    self.save()
                if stopping:
                    break
                every = self.settings.validate_every
                if self.validate is not None and every and self.step % every == 0:
                    with averaged_weights(self.optimizers):
                        self.monitor.write(self.step, self.validate(self.step))
        return self.step >= self.settings.updates

    def save(self) -> None:
        """Write a checkpoint; the main process does, the others wait."""
        # Weights that are shared out are gathered by all processes together.
        if self.is_main or self.is_sharded:
            tensors: dict[str, torch.Tensor] = {}
            states = [
                pack_state(optimizer.state_dict(), tensors, f"{number}")
                for number, optimizer in enumerate(self.optimizers)
            ]
            files = {"weights": self.trained.state(), "optimizer": tensors}
            if self.average is not None:
                files["average"] = state_of(self.average.state())
            state = {
                "configuration": self.configuration,
                "optimizers": states,
                "skipped": self.skipped,
                "bad_in_a_row": self._bad_in_a_row,
                "monitor": self.monitor.state(),
            }
            if self.is_main:
                self.checkpoints.save(self.step, state, files)
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def _load(self, checkpoint: Checkpoint) -> None:
        try:
            self.trained.load(checkpoint.files["weights"])
        except ValueError as error:
            raise ValueError(f"The checkpoint `{checkpoint.path}` belongs to other parameters: {error}") from error
        for optimizer, tree in zip(self.optimizers, checkpoint.state["optimizers"], strict=True):
            state = unpack_state(tree, checkpoint.files["optimizer"])
            optimizer.load_state_dict(shared_states(optimizer, state))
        if self.average is not None:
            self.average.load(checkpoint.files["average"])
        self.monitor.load(checkpoint.state["monitor"])
        self.step, self.skipped = checkpoint.step, checkpoint.state["skipped"]
        self._bad_in_a_row = checkpoint.state["bad_in_a_row"]

    def _update(self, update: int) -> None:
        set_rates(self.optimizers, self.schedule(update))
        losses, sigmas, waited = self._accumulate(update)
        norm, finite = self._step(losses)
        if finite:
            if self.average is not None:
                self.average.update(update)
        else:
            self._keep_bad(update)
        self._count_bad(finite, update)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        rates = {
            f"{number}.{place}": group["lr"]
            for number, optimizer in enumerate(self.optimizers)
            for place, group in enumerate(optimizer.param_groups)
        }
        self.monitor.update(update + 1, losses, sigmas, float(norm), rates, waited, self.skipped)

    def _step(self, losses: torch.Tensor) -> tuple[torch.Tensor, bool]:
        """Step the parameters; return the norm of the gradient, and whether there was a step."""
        if self._fused is not None:
            finite = bool(losses.isfinite().all())
            if finite:
                self._fused.step()
            return losses.new_tensor(float("nan")), finite
        norm = clip_gradients(self.trained.named_parameters().values(), self.settings.clip)
        # The norm is that of the gradients after they were summed over processes, so all of them decide alike.
        finite = bool(torch.isfinite(norm))
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
        return norm, finite

    def _accumulate(self, update: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Add up the gradients of an update; return losses and noise levels of all its samples."""
        started = time.perf_counter()
        batches = list(self.updates.batches(update))
        waited = time.perf_counter() - started
        processes = 1 if self.accelerator is None else self.accelerator.num_processes
        losses, sigmas, self._made = [], [], []
        for number, (samples, place) in enumerate(batches):
            batch = self.make_batch(samples, place).to(self._device)
            self._made.append(batch)
            with summing(self._module, self.accelerator, number == len(batches) - 1):
                loss = self._module(batch)
                # Gradients are averaged over processes, and this one has only its share of the samples.
                self._backward(loss.sum() * (processes / place.total))
            losses.append(loss.detach())
            sigmas.append(batch.sigma)
        joined = torch.cat(losses), torch.cat(sigmas)
        if self.accelerator is not None:
            joined = tuple(self.accelerator.gather(each) for each in joined)
        return *joined, waited

    def _backward(self, loss: torch.Tensor) -> None:
        if self._fused is not None and not bool(loss.isfinite()):
            # The parameters would be stepped before anybody looks at their gradients.
            return
        loss.backward() if self.accelerator is None else self.accelerator.backward(loss)

    def _keep_bad(self, update: int) -> None:
        """Write the batches of an update whose gradient is not finite, for a look at them."""
        process = 0 if self.accelerator is None else self.accelerator.process_index
        tensors = {
            f"{number}.{name}": value.detach().cpu().contiguous()
            for number, batch in enumerate(self._made)
            for name, value in vars(batch).items()
            if isinstance(value, torch.Tensor)
        }
        folder = self.checkpoints.folder.parent / "bad_updates"
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, folder / f"update-{update + 1:08d}-process-{process}.safetensors")

    def _count_bad(self, finite: bool, update: int) -> None:
        self._bad_in_a_row = 0 if finite else self._bad_in_a_row + 1
        self.skipped += not finite
        if not finite:
            logger.warning(
                f"Update {update + 1} was skipped: its gradient is not finite. Its batches are in `bad_updates`."
            )
        if self._bad_in_a_row > self.settings.stop_after_bad:
            raise FloatingPointError(
                f"{self._bad_in_a_row} updates in a row had a gradient that is not finite, up to update {update + 1}. "
                f"Lower the learning rate, train in float32, or look at the samples of these updates."
            )

    def _agrees(self, stop: bool) -> bool:
        """Whether any process was asked to stop, so that all of them stop after the same update."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return stop
        asked = torch.tensor([float(stop)], device=self._device)
        return bool(self.accelerator.reduce(asked, "sum")[0] > 0)


def check_configuration(saved: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Raise a [`ConfigurationChangedError`] that names the entries in which two configurations differ."""
    before, now = _flat(saved), _flat(given)
    differ = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if differ:
        listed = ", ".join(f"`{name}` {before.get(name)!r} (now {now.get(name)!r})" for name in differ[:8])
        raise ConfigurationChangedError(
            f"The run cannot be resumed from `{where}`, which was written with another configuration: {listed}. Use "
            f"those values, or another output folder."
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        parts = [_flat(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in tree.items()]
        return {name: value for part in parts for name, value in part.items()}
    return {prefix: tree}
