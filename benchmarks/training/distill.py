"""How far students of few steps end from a teacher of 28 steps with classifier-free guidance, on the tiny model.

python -m benchmarks.training.distill --work distilled
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.run.build import build_run


RECIPE = Path(__file__).parents[2] / "examples" / "training" / "tiny_distill.yaml"


def measure(method: str, steps: int, updates: int) -> tuple[float, float]:
    """Train a student; return the mean squared error of held-out samples' latents before and after."""
    changes = [
        f"output=runs/{method}-{steps}", f"distill.method={method}", f"distill.num_inference_steps={steps}",
        f"run.updates={updates}", f"run.save_every={updates}", "run.logs=[jsonl]", f"validation.every={updates}",
    ]  # fmt: skip
    run = build_run(read_config(RECIPE, changes))
    if run is None or run.trainer.validate is None:
        raise RuntimeError("The recipe has no validation, so there is nothing to measure.")
    before = run.trainer.validate(updates)["validation/loss"]
    run()
    return before, run.trainer.validate(updates)["validation/loss"]


def main() -> None:
    """Write the data, train, and print a row for each student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=Path("distilled"), help="folder of the data and the runs")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 2, 1], help="steps of the students")
    parser.add_argument("--methods", nargs="+", default=["end_to_end", "per_step"])
    parser.add_argument("--updates", type=int, default=120)
    parser.add_argument("--count", type=int, default=108, help="samples, 12 of which are held out")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    if not Path("shapes").exists():
        write_example_data("shapes", args.count)
    sys.stdout.write("| steps | method | before | after | after / before |\n|---|---|---|---|---|\n")
    for steps in args.steps:
        for method in args.methods:
            before, after = measure(method, steps, args.updates)
            sys.stdout.write(f"| {steps} | `{method}` | {before:.4f} | {after:.4f} | {after / before:.2f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
