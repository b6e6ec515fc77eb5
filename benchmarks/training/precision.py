"""What weights of 16 bits learn by steps that they cannot hold, and LoRAs over bases of 8 and 4 bits.

python -m benchmarks.training.precision --work proofs
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from benchmarks.training.drawing import Measured
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof, Variant, main
from diffusers_flux_ext.training.optim.rules import LOW, RULES
from diffusers_flux_ext.training.run.build import Run, build_run
from diffusers_flux_ext.training.run.validation import ValidationLoss


RECIPE = "tiny_precision"
SIGMAS = (0.25, 0.5, 0.75, 0.9)
ENOUGH_FALL, KEPT, LOST, KEPT_BY_LORA = 0.2, 0.95, 0.5, 0.9


class Nearest:
    """Rounds to the nearest number, as an optimizer on bfloat16 weights does; what is offered elsewhere is better.

    Args:
        names (`Mapping[torch.nn.Parameter, str]`): Not needed.
        seed (`int`): Not needed.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = LOW

    def __init__(self, names: Mapping[torch.nn.Parameter, str], seed: int) -> None:
        pass

    def kept(self) -> dict[torch.nn.Parameter, torch.Tensor]:
        """Return what is kept between steps: nothing."""
        return {}

    def raised(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the weight in float32."""
        return parameter.detach().float()

    def lower(self, parameter: torch.nn.Parameter, value: torch.Tensor, update: int) -> None:
        """Round to the nearest number."""
        parameter.copy_(value)


RULES["nearest"] = Nearest  # type: ignore[assignment]


def _lora(name: str, *changes: str) -> Variant:
    lora = "train={lora: {rank: 16, targets: attention+mlp}}"
    return Variant(f"precision_{name}", RECIPE, (lora, "optimizer.lr=0.001", "run.updates=200", *changes))


def _whole(rule: str) -> Variant:
    return Variant(f"precision_{rule}", RECIPE, ("model.dtype=bfloat16", f"optimizer.rounding={rule}"))


WHOLE = {rule: _whole(rule) for rule in ("stochastic", "kahan", "nearest")}
LORAS = {name: _lora(name, f"model.storage={name}") for name in ("fp8", "nf4")}
if importlib.util.find_spec("bitsandbytes") is None:
    del LORAS["nf4"]
BASE, LORA, BEFORE = Variant(RECIPE, RECIPE), _lora("lora"), Variant("precision_before", RECIPE, ("run.updates=1",))


@contextlib.contextmanager
def opened(variant: Variant, work: Path) -> Iterator[Run]:
    """Yield a run at its last update; one that was never started, at its beginning."""
    with contextlib.chdir(work):
        run = build_run(variant.config)
        if run is None:
            raise RuntimeError("A run ended before its training began.")
        yield run


def held_out(run: Run) -> ValidationLoss:
    """Return the loss of all samples that a run does not train on."""
    part: Any = run.trainer.updates.loader.samples  # type: ignore[attr-defined]
    held = sorted(set(range(len(part.samples))) - set(part.chosen))
    kept = [part.samples.sample(index) for index in held]
    return ValidationLoss(run.training, kept, run.trainer.make_batch, sigmas=SIGMAS)


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare the falls of the loss of held-out samples; see [`Proof`]."""
    work = measured.path.parents[1]

    def losses(variant: Variant) -> list[float]:
        with opened(variant, work) as run:
            loss = held_out(run)

            def found(part: Sequence[int]) -> list[np.ndarray]:
                few = ValidationLoss(loss.training, [loss.samples[each] for each in part], loss.make_batch,
                                     sigmas=SIGMAS)  # fmt: skip
                return list(few.losses().mean(dim=1).double().numpy())

            return measured(variant.name, items, found, lambda index, value: float(value))

    before, after, lora = losses(BEFORE), losses(BASE), losses(LORA)
    fall = list(zip(before, after, strict=True))
    bounds = [Bound("all weights, float32: fall of the loss", interval(fall, _fall), low=ENOUGH_FALL, unit="%")]
    for rule, variant in WHOLE.items():
        limit: dict[str, float] = {"high": LOST} if rule == "nearest" else {"low": KEPT}
        rows = list(zip(before, after, losses(variant), strict=True))
        bounds.append(Bound(f"bfloat16, {TITLES[rule]}: part of it", interval(rows, _part), unit="%", **limit))
    pairs = list(zip(before, lora, strict=True))
    bounds.append(Bound("LoRA over float32: fall of the loss", interval(pairs, _fall), unit="%"))
    for name, variant in LORAS.items():
        rows = list(zip(before, lora, losses(variant), strict=True))
        bounds.append(Bound(f"LoRA over {name}: part of it", interval(rows, _part), low=KEPT_BY_LORA, unit="%"))
    return bounds


TITLES = {"stochastic": "stochastic rounding", "kahan": "Kahan summation", "nearest": "ordinary rounding"}


def _fall(rows: np.ndarray) -> float:
    return float(1 - rows[:, 1].mean() / rows[:, 0].mean())


def _part(rows: np.ndarray) -> float:
    before, base, other = rows.mean(axis=0)
    return float((before - other) / (before - base))


PROOF = Proof(
    "precision",
    "all weights, and a LoRA of rank 16, in several precisions (grey stripes)",
    (BASE, *WHOLE.values(), LORA, *LORAS.values()),
    ("more_stripes",),
    score,
)

if __name__ == "__main__":
    main(PROOF)
