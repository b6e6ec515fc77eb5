"""VRAM plans, and how they are shown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .estimate import Workload


GIB = 2**30
Level = Literal["whole", "blocks", "leaves"]


class VRAMBudgetError(ValueError):
    """Raised for a budget that cannot be kept.

    Attributes:
        smallest_gib (`float`): The smallest budget that works for the same call.
    """

    def __init__(self, message: str, smallest_gib: float) -> None:
        super().__init__(message)
        self.smallest_gib = smallest_gib


@dataclass(frozen=True)
class ComponentPlan:
    """Where one model's weights are.

    Attributes:
        name (`str`): The component's name in the pipeline, or `Condition.field` for a condition's module.
        kind (`str`): Its class.
        phase (`str`): The phase it runs in.
        level (`"whole"`, `"blocks"` or `"leaves"`):
            What comes to the card at once: the whole model, a block, or a layer.
        rest (`int`): Bytes outside the blocks.
        resident (`dict[str, int]`): Bytes of the blocks that stay on the card during the phase.
        streamed (`dict[str, int]`): Bytes of the blocks that come for their own turn only.
        prefetch (`bool`): Whether the next streamed block is copied while one runs.
        activations (`int`): Peak bytes of activations.
        assumed (`bool`): Whether `activations` are assumed rather than counted.
        window (`int`): Bytes of the streamed weights that are on the card at once.
        storage_dtype (`torch.dtype`, *optional*): Data type that the blocks' weights are stored in.
        from_disk (`bool`): Whether blocks are read from files, at least once.
        on_disk (`frozenset[str]`): Names of the blocks that are read from disk whenever they come to the card.
        stays (`bool`): Whether it never leaves the card, so that no copy is held in host memory.
    """

    name: str
    kind: str
    phase: str
    level: Level
    rest: int
    resident: dict[str, int]
    streamed: dict[str, int]
    prefetch: bool
    activations: int
    assumed: bool
    window: int
    storage_dtype: torch.dtype | None = None
    from_disk: bool = False
    on_disk: frozenset[str] = frozenset()
    stays: bool = False

    @property
    def total(self) -> int:
        """Bytes of all of its weights."""
        return self.rest + sum(self.resident.values()) + sum(self.streamed.values())

    @property
    def held(self) -> int:
        """Bytes of its weights on the card during its phase, without streamed ones."""
        return 0 if self.level == "leaves" else self.rest + sum(self.resident.values())

    @property
    def host_bytes(self) -> int:
        """Bytes of the copy in host memory."""
        if self.stays:
            return 0
        return sum(size for name, size in self._parts.items() if name not in self.on_disk)

    @property
    def disk_window(self) -> int:
        """Host memory for blocks from disk: the one that is copied, and the next one."""
        largest = max((self._parts[name] for name in self.on_disk), default=0)
        # Sizes of pinned memory are rounded up to powers of two.
        return 2 << (largest - 1).bit_length() if largest else 0

    @property
    def _parts(self) -> dict[str, int]:
        return {"": self.rest, **self.resident, **self.streamed}

    @property
    def where(self) -> str:
        """Where its weights are, in words."""
        words = {
            "whole": "on the card, always" if self.stays else f"on the card during {self.phase}",
            "leaves": "layer by layer",
            "blocks": f"{len(self.resident)} blocks stay, {len(self.streamed)} stream",
        }[self.level]
        if self.level != "whole" and not self.prefetch:
            words += " without prefetch"
        if self.on_disk:
            everything = len(self.on_disk) == len(self.resident) + len(self.streamed)
            words += ", all blocks on disk" if everything else f", {len(self.on_disk)} on disk"
        if self.storage_dtype is not None:
            words += f", {str(self.storage_dtype).removeprefix('torch.')}"
        return words


@dataclass(frozen=True)
class PhasePlan:
    """One part of a call, and the most memory it takes.

    Attributes:
        name (`str`): The component that runs, or `"loop"`.
        weights (`int`): Bytes of its own weights on the card at once.
        activations (`int`): Bytes of activations, and of what conditions hold.
        keeps (`frozenset[tuple[str, str]]`): Parts of other phases that may stay, as (component, block).
        kept (`int`): Their bytes.
    """

    name: str
    weights: int
    activations: int
    keeps: frozenset[tuple[str, str]]
    kept: int

    @property
    def peak(self) -> int:
        """Largest number of bytes at once."""
        return self.weights + self.activations + self.kept


@dataclass(frozen=True)
class VRAMPlan:
    """A plan from [`plan_vram`]; print it to read it.

    Attributes:
        budget_gib (`float`): GiB that may be used.
        margin (`int`): Bytes of the budget left for the scratch memory of kernels and for fragments.
        workload (`Workload`): The call that it was made for.
        components (`tuple[ComponentPlan, ...]`): Where the weights are.
        phases (`tuple[PhasePlan, ...]`): The parts of a call in their order.
        vae_tile (`int`, *optional*): Side of the autoencoder's tiles in pixels; `None` is untiled.
        offload_dir (`str`, *optional*): Folder for blocks on disk.
        options (`dict[str, Any]`): The arguments it was made with, to make it again.
    """

    budget_gib: float
    margin: int
    workload: Workload
    components: tuple[ComponentPlan, ...]
    phases: tuple[PhasePlan, ...]
    vae_tile: int | None = None
    offload_dir: str | None = None
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def peak_gib(self) -> float:
        """Largest peak of a phase, in GiB."""
        return max(phase.peak for phase in self.phases) / GIB

    @property
    def host_gib(self) -> float:
        """Host memory of the weights' copies, in GiB."""
        return host_bytes(self.components) / GIB

    @property
    def streamed_gib(self) -> float:
        """GiB that are copied to the card in each step of the loop."""
        loop = [each for each in self.components if each.phase == "loop"]
        return sum(each.total if each.level == "leaves" else sum(each.streamed.values()) for each in loop) / GIB

    def component(self, name: str) -> ComponentPlan:
        """Return the plan of one component."""
        return next(each for each in self.components if each.name == name)

    def phase(self, name: str) -> PhasePlan:
        """Return the plan of one phase."""
        return next(each for each in self.phases if each.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, sizes in GiB."""
        return {
            "budget_gib": self.budget_gib,
            "peak_gib": self.peak_gib,
            "margin_gib": self.margin / GIB,
            "host_gib": self.host_gib,
            "streamed_gib_per_step": self.streamed_gib,
            "height": self.workload.height,
            "width": self.workload.width,
            "batch": self.workload.batch,
            "devices": self.workload.devices,
            "text_tokens": self.workload.text_tokens,
            "image_tokens": self.workload.image_tokens,
            "vae_tile": self.vae_tile,
            "components": {each.name: _component_dict(each) for each in self.components},
            "phases": {
                each.name: {
                    "weights_gib": each.weights / GIB,
                    "activations_gib": each.activations / GIB,
                    "kept_gib": each.kept / GIB,
                    "peak_gib": each.peak / GIB,
                }
                for each in self.phases
            },
        }

    def __str__(self) -> str:
        work = self.workload
        tile = "untiled" if self.vae_tile is None else f"in tiles of {self.vae_tile} pixels"
        shared = "" if work.devices == 1 else f" shared by {work.devices} devices"
        lines = [
            f"Budget {self.budget_gib:g} GiB, predicted peak {self.peak_gib:.2f} GiB: {work.width} x {work.height}, "
            f"batch {work.batch}, {work.text_tokens} text and {work.image_tokens} image tokens{shared}, VAE {tile}.",
            f"Host memory for the weights: {self.host_gib:.2f} GiB. Copied to the card per step: "
            f"{self.streamed_gib:.2f} GiB.",
            "",
        ]
        rows: list[tuple[str, ...]] = [("component", "weights GiB", "activations GiB", "where")]
        for each in self.components:
            note = " (assumed)" if each.assumed else ""
            rows.append((each.name, _gib(each.total), _gib(each.activations) + note, each.where))
        lines += [*text_table(rows), ""]
        rows = [("phase", "weights GiB", "activations GiB", "kept for others GiB", "peak GiB")]
        for phase in self.phases:
            numbers = (phase.weights, phase.activations, phase.kept, phase.peak)
            rows.append((phase.name, *(_gib(number) for number in numbers)))
        return "\n".join([*lines, *text_table(rows)])


def host_bytes(plans: Collection[ComponentPlan]) -> int:
    """Count the host memory of all models' copies, of which one runs at a time."""
    return sum(plan.host_bytes for plan in plans) + max((plan.disk_window for plan in plans), default=0)


def _component_dict(plan: ComponentPlan) -> dict[str, Any]:
    return {
        "class": plan.kind,
        "phase": plan.phase,
        "level": plan.level,
        "gib": plan.total / GIB,
        "activations_gib": plan.activations / GIB,
        "activations_assumed": plan.assumed,
        "resident": list(plan.resident),
        "streamed": list(plan.streamed),
        "prefetch": plan.prefetch,
        "window_gib": plan.window / GIB,
        "storage_dtype": None if plan.storage_dtype is None else str(plan.storage_dtype).removeprefix("torch."),
        "on_disk": sorted(plan.on_disk),
        "stays": plan.stays,
        "host_gib": plan.host_bytes / GIB,
    }


def _gib(number: int) -> str:
    return f"{number / GIB:.2f}"


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as a Markdown table; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in lines]
