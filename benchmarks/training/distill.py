"""Students of few steps beside the same model without distillation: how far from the teacher each of them ends.

The teacher takes 28 steps with classifier-free guidance; students take few, without it. All start from equal noise.

python -m benchmarks.training.distill --work proofs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.training.drawing import Measured, draw, load_pipeline, prompts, scenes
from benchmarks.training.intervals import interval
from benchmarks.training.runner import Bound, Proof, Variant, main
from benchmarks.training.shipped import FILE
from benchmarks.training.worlds import named
from diffusers_flux_ext import flux_shapes


RECIPE = "tiny_distill"
STUDENTS = {2: RECIPE, 4: "distill_4", 1: "distill_1"}
"""Names of the students by their steps."""

HALF = 0.5
"""The largest part of the error without distillation that a student may have."""

SCORED, STANDARD_ERRORS = 2, 3.0
"""The student whose scenes are scored, and how far above the model without distillation it should be."""

TEACHER = {"num_inference_steps": 28, "true_cfg_scale": 2.0}


def score(folders: dict[str, Path], measured: Measured, items: int) -> list[Bound]:
    """Compare latents with the teacher's, and scenes of two steps with what was asked for; see [`Proof`]."""
    pipe, shown = load_pipeline(), scenes(items, named)
    texts = prompts(shown)
    for name in STUDENTS.values():
        pipe.load_lora_weights(folders[name], weight_name=FILE, adapter_name=name)

    def errors(part: Sequence[int]) -> list[np.ndarray]:
        given = [texts[index] for index in part]
        pipe.disable_lora()
        goal = draw(pipe, given, part, output_type="latent", **TEACHER)
        columns = []
        for steps, name in STUDENTS.items():
            pipe.disable_lora()
            columns.append(_distances(goal, draw(pipe, given, part, output_type="latent", num_inference_steps=steps)))
            pipe.enable_lora()
            pipe.set_adapters(name)
            columns.append(_distances(goal, draw(pipe, given, part, output_type="latent", num_inference_steps=steps)))
        return list(np.stack(columns, axis=1))

    found = measured("errors", items, errors, lambda index, row: [float(each) for each in row])
    bounds = []
    for steps, rows in zip(STUDENTS, np.asarray(found).reshape(items, -1, 2).transpose(1, 0, 2), strict=True):
        plural = f"{steps} step{'s' if steps > 1 else ''}"
        bounds += [
            Bound(f"{plural}: squared error of the latents, without distillation", interval(list(rows[:, 0]))),
            Bound(f"{plural}: squared error of the latents, student", interval(list(rows[:, 1]))),
            Bound(f"{plural}: student's by the other", interval(rows.tolist(), _ratio), high=HALF),
        ]

    def scored(variant: str, adapter: str | None) -> list[float]:
        pipe.disable_lora()
        if adapter is not None:
            pipe.enable_lora()
            pipe.set_adapters(adapter)
        return measured(
            variant, items,
            lambda part: draw(pipe, [texts[index] for index in part], part, num_inference_steps=SCORED),
            lambda index, image: float(flux_shapes.score_scene(image, shown[index]).all_right),
        )  # fmt: skip

    before, after = scored("scenes before", None), scored("scenes after", STUDENTS[SCORED])
    return [*bounds, *_scenes(before, after)]


def _scenes(before: Sequence[float], after: Sequence[float]) -> list[Bound]:
    gains = np.subtract(after, before)
    above = float(gains.mean() / max(gains.std(ddof=1) / len(gains) ** 0.5, 1e-9))
    return [
        Bound(f"{SCORED} steps: scenes all right, without distillation", interval(list(before)), unit="%"),
        Bound(f"{SCORED} steps: scenes all right, student", interval(list(after)), unit="%"),
        Bound(
            f"{SCORED} steps: standard errors by which the student is better",
            {"value": above, "low": above, "high": above, "items": len(gains)},
            low=STANDARD_ERRORS,
        ),
    ]


def _distances(goal: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([((one - other) ** 2).mean() for one, other in zip(goal, found, strict=True)])


def _ratio(rows: np.ndarray) -> float:
    return float(rows[:, 1].mean() / rows[:, 0].mean())


PROOF = Proof(
    "distill",
    "students of 2, 4 and 1 steps, LoRAs of rank 32, end to end",
    tuple(
        RECIPE if name == RECIPE else Variant(name, RECIPE, (f"distill.num_inference_steps={steps}",))
        for steps, name in STUDENTS.items()
    ),
    ("named",),
    score,
)

if __name__ == "__main__":
    main(PROOF)
