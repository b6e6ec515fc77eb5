"""Attached conditions beside `FluxConditionedPipeline`: the time of a step, in one run, both in turns.

Run from the repository's root:

    python -m benchmarks.attached --repeats 20
    python -m benchmarks.attached --repeats 20 --steps 20 --image-size 32 --text-tokens 16 --width 128 --single 2
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxPipeline
from PIL import Image

from diffusers_flux_ext import (
    ControlNetImage,
    EntityRegions,
    FluxConditionedPipeline,
    ReferenceImages,
    attach_conditions,
)
from diffusers_flux_ext.testing import randomise, tiny_components


PICTURE = Image.effect_mandelbrot((128, 128), (-2, -1, 1, 1), 20).convert("RGB")
HALVES = [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]


def make_pipes(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return diffusers' pipeline and ours with the same components, of a model wide enough for real steps."""
    wide: dict[str, Any] = {"attention_head_dim": 128, "num_attention_heads": args.width // 128}
    wide |= {"num_layers": args.double, "num_single_layers": args.single, "axes_dims_rope": (16, 56, 56)}
    stock = FluxPipeline(**tiny_components(0, **wide))
    ours = FluxConditionedPipeline.from_pipe(stock)
    for pipe in (stock, ours):
        pipe.set_progress_bar_config(disable=True)
    return stock, ours


def make_conditions(pipe: Any) -> dict[str, list[Any]]:
    """Return the sets of conditions that are measured, by the names of the table's rows."""
    config = {**pipe.transformer.config, "num_layers": 1, "num_single_layers": 0}
    net = randomise(FluxControlNetModel.from_config(config), 1)
    entities = EntityRegions(["a red cat", "a blue dog"], HALVES)
    references = ReferenceImages([PICTURE], preferred_size=False)
    return {
        "none": [],
        "2 entities": [entities],
        "1 reference": [references],
        "1 ControlNet": [ControlNetImage(net, PICTURE)],
        "all of them": [entities, references, ControlNetImage(net, PICTURE)],
    }


def step_seconds(call: Callable[..., Any], args: argparse.Namespace, **more: Any) -> list[float]:
    """Return processor seconds of each step but the first, which also builds the attention plan."""
    ends: list[float] = []

    def note(pipe: Any, index: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        ends.append(time.process_time())
        return {}

    size = {"height": args.image_size, "width": args.image_size, "max_sequence_length": args.text_tokens}
    given = {"num_inference_steps": args.steps, "output_type": "latent", "callback_on_step_end": note, **size}
    call("a cat", **given, **more)
    return [end - start for start, end in zip(ends, ends[1:])]


def measure(stock: Any, ours: Any, conditions: list[Any], args: argparse.Namespace) -> tuple[float, float]:
    """Return the median seconds of a step attached and in our pipeline; the two take turns, also in coming first."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(args.repeats + 1):
        for side in (repeat % 2, 1 - repeat % 2):
            if side:
                steps = step_seconds(ours, args, conditions=conditions)
            else:
                with attach_conditions(stock, conditions):
                    steps = step_seconds(stock, args)
            # The first turn warms up.
            seconds[side].extend(steps if repeat else [])
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def table(args: argparse.Namespace) -> str:
    """Return the table in Markdown."""
    stock, ours = make_pipes(args)
    rows = ["| conditions | attached, ms | our pipeline, ms | difference, ms | ratio |", "|---|---|---|---|---|"]
    for name, conditions in make_conditions(stock).items():
        attached, own = measure(stock, ours, conditions, args)
        cells = [f"{1000 * attached:.2f}", f"{1000 * own:.2f}", f"{1000 * (attached - own):.2f}"]
        rows.append(f"| {name} | {' | '.join(cells)} | {attached / own:.3f} |")
    return "\n".join(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=256, help="side in pixels; 16 pixels a token")
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--double", type=int, default=2)
    parser.add_argument("--single", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.stdout.write(table(args) + "\n")


if __name__ == "__main__":
    main()
