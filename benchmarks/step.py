"""The composable pipeline without conditions beside `FluxPipeline` and the reference, and what conditions cost.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.step --part calls --image-size 256 --repeats 15
    python -m benchmarks.step --part parts --image-size 256 --repeats 15
    python -m benchmarks.step --part overhead --repeats 41
    python -m benchmarks.step --part curves --image-size 384 --image benchmarks/conditions.png
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import FluxControlNetModel, FluxPipeline
from PIL import Image

from benchmarks.attached import step_seconds as all_step_seconds
from benchmarks.curves import draw_curves
from benchmarks.support.reference import reference_pair
from diffusers_flux_ext import ControlNetImage, EntityRegions, FluxConditionedPipeline, ReferenceImages
from diffusers_flux_ext.testing import randomise


Side = Callable[[], Any]
IMAGE = Image.effect_mandelbrot((256, 256), (-2, -1, 1, 1), 20).convert("RGB")


def make_pipes(args: argparse.Namespace, tiny: bool = False) -> tuple[Any, Any, Any]:
    """Return the reference's pipeline, diffusers' and ours with the same weights."""
    wide = {"attention_head_dim": 128, "num_attention_heads": args.width // 128, "axes_dims_rope": (16, 56, 56)}
    both = reference_pair(0, **({} if tiny else {"num_layers": args.double, "num_single_layers": args.single, **wide}))
    ours = FluxConditionedPipeline(**both.components)
    stock = ours.to_pipeline(FluxPipeline)
    for pipe in (ours, stock):
        pipe.set_progress_bar_config(disable=True)
    return both.reference, stock, ours


def make_calls(args: argparse.Namespace, size: int, tiny: bool = False) -> dict[str, Side]:
    """Return a whole call of each side: prompt, steps, decoding."""
    return _calls(args, size, *make_pipes(args, tiny))


def _calls(args: argparse.Namespace, size: int, reference: Any, stock: Any, ours: Any) -> dict[str, Side]:
    shared = {"height": size, "width": size, "num_inference_steps": args.steps}
    given = {"max_sequence_length": args.text_tokens, "output_type": "pt", **shared}
    theirs = {"t5_sequence_length": args.text_tokens, "progress_bar_cmd": list, **shared}
    return {
        "reference": lambda: reference("a cat", **theirs),
        "diffusers": lambda: stock("a cat", **given),
        "diffusers again": lambda: stock("a cat", **given),
        "ours": lambda: ours("a cat", **given),
    }


def interleave(sides: dict[str, Side], repeats: int) -> dict[str, list[float]]:
    """Return the processor seconds of each side; they take turns, and the first call does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for repeat in range(repeats + 1):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            start = time.process_time()
            sides[name]()
            if repeat:
                seconds[name].append(time.process_time() - start)
    return seconds


@contextmanager
def timed(owner: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Append the processor seconds of each call of a method."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def measured(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        result = function(*given, **named)
        seconds.append(time.process_time() - start)
        return result

    with mock.patch.object(owner, name, measured):
        yield


def table_of_parts(args: argparse.Namespace) -> str:
    """Return where a whole call spends its time, in the reference, in diffusers and in ours."""
    size = args.image_size
    reference, stock, ours = make_pipes(args)
    places: dict[str, dict[str, tuple[Any, str]]] = {
        "reference": {"transformer": (reference, "model_fn"), "decoder": (reference.vae_decoder, "forward")},
        **{
            name: {"transformer": (pipe.transformer, "forward"), "decoder": (pipe.vae, "decode")}
            for name, pipe in (("diffusers", stock), ("ours", ours))
        },
    }
    sides = {name: side for name, side in _calls(args, size, reference, stock, ours).items() if name in places}
    found: dict[str, dict[str, list[float]]] = {name: {"call": [], "transformer": [], "decoder": []} for name in sides}

    def run(name: str) -> None:
        parts: dict[str, list[float]] = {part: [] for part in places[name]}
        with ExitStack() as stack:
            for part, (owner, method) in places[name].items():
                stack.enter_context(timed(owner, method, parts[part]))
            start = time.process_time()
            sides[name]()
            found[name]["call"].append(time.process_time() - start)
        for part, seconds in parts.items():
            found[name][part].append(sum(seconds))

    interleave({name: functools.partial(run, name) for name in sides}, args.repeats)
    lines = ["| | call, s | transformer, s | decoder, s | rest, s |\n", "|---|---|---|---|---|\n"]
    for name, parts in found.items():
        call, *inside = (statistics.median(seconds[1:]) for seconds in parts.values())
        cells = [f"{seconds:.4f}" for seconds in (call, *inside, call - sum(inside))]
        lines.append(f"| {name} | {' | '.join(cells)} |\n")
    return "".join(lines)


def paired(one: list[float], other: list[float]) -> float:
    """Return the median of the ratios of runs that were next to each other."""
    return statistics.median(a / b for a, b in zip(one, other))


def table_of_calls(args: argparse.Namespace) -> str:
    """Return seconds per step of a whole call, and the ratios to ours; diffusers beside itself shows the noise."""
    seconds = interleave(make_calls(args, args.image_size), args.repeats)
    cells = [f"{statistics.median(seconds[name]) / args.steps:.4f}" for name in ("reference", "diffusers", "ours")]
    pairs = [("reference", "ours"), ("diffusers", "ours"), ("diffusers", "diffusers again")]
    cells += [f"{paired(seconds[one], seconds[other]):.3f}" for one, other in pairs]
    head = ["tokens", "reference, s", "diffusers, s", "ours, s", *(f"{one} / {other}" for one, other in pairs)]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*rows, f"| {(args.image_size // 16) ** 2} | " + " | ".join(cells) + " |"])


def table_of_overhead(args: argparse.Namespace) -> str:
    """Return milliseconds of calls with a tiny model, where Python is nearly everything."""
    rows = ["| steps | diffusers, ms | ours, ms | ours - diffusers, ms |", "|---" * 4 + "|"]
    for steps in (1, 9):
        sides = make_calls(argparse.Namespace(**{**vars(args), "steps": steps, "text_tokens": 16}), 32, tiny=True)
        del sides["reference"], sides["diffusers again"]
        seconds = interleave(sides, args.repeats)
        more = statistics.median(a - b for a, b in zip(seconds["ours"], seconds["diffusers"]))
        cells = [f"{1000 * statistics.median(seconds[name]):.2f}" for name in ("diffusers", "ours")]
        rows.append(f"| {steps} | " + " | ".join(cells) + f" | {1000 * more:.2f} |")
    return "\n".join(rows)


def make_conditions(pipe: Any, args: argparse.Namespace) -> dict[str, list[list[Any]]]:
    """For each method, the conditions of calls with 1, 2, ... of its inputs."""
    config = {**pipe.transformer.config, "num_layers": 1, "num_single_layers": 0}
    nets = [randomise(FluxControlNetModel.from_config(config), seed) for seed in range(3)]
    boxes = [(index % 4 / 4, index // 4 / 3, index % 4 / 4 + 0.25, index // 4 / 3 + 1 / 3) for index in range(10)]
    return {
        "entities": [[EntityRegions([f"dog {i}" for i in range(n)], boxes[:n])] for n in range(1, 11)],
        "references": [[ReferenceImages([IMAGE] * n, preferred_size=False)] for n in range(1, 5)],
        "ControlNets": [[ControlNetImage(net, IMAGE) for net in nets[:n]] for n in range(1, 4)],
    }


def step_seconds(pipe: Any, args: argparse.Namespace, conditions: list[Any]) -> float:
    """Return median processor seconds of a step, without the first one, which also builds the attention plan."""
    three = argparse.Namespace(**{**vars(args), "steps": 3})
    return statistics.median(all_step_seconds(pipe, three, conditions=conditions))


def measure_curves(args: argparse.Namespace) -> dict[str, list[float]]:
    """For each method, the cost of a step with 0, 1, 2, ... of its inputs, in steps without conditions."""
    _, _, pipe = make_pipes(args)
    curves: dict[str, list[float]] = {}
    for method, calls in make_conditions(pipe, args).items():
        curves[method] = [1.0]
        for conditions in calls:
            pairs = [(step_seconds(pipe, args, conditions), step_seconds(pipe, args, [])) for _ in range(args.repeats)]
            curves[method].append(statistics.median(one / plain for one, plain in pairs))
            sys.stderr.write(f"{method} {len(curves[method]) - 1}: {curves[method][-1]:.2f}\n")
    return curves


def table_of_curves(curves: dict[str, list[float]]) -> str:
    """Return the curves in Markdown."""
    most = max(len(values) for values in curves.values())
    rows = ["| | " + " | ".join(map(str, range(most))) + " |", "|---" * (most + 1) + "|"]
    for method, values in curves.items():
        cells = [f"{value:.2f}" for value in values] + [""] * (most - len(values))
        rows.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def parse_args() -> argparse.Namespace:
    """Return sizes and repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["calls", "parts", "overhead", "curves"], default="calls")
    parser.add_argument("--image-size", type=int, default=256, help="side in pixels; 16 pixels a token")
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--double", type=int, default=2)
    parser.add_argument("--single", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image", type=Path, help="where the curves are drawn")
    return parser.parse_args()


def main() -> None:
    """Print a table, and draw the curves."""
    args = parse_args()
    torch.set_num_threads(1)
    if args.part == "curves":
        curves = measure_curves(args)
        if args.image is not None:
            draw_curves(curves, "cost of a step, in steps without conditions", args.image)
        made = table_of_curves(curves)
    else:
        made = {"calls": table_of_calls, "parts": table_of_parts, "overhead": table_of_overhead}[args.part](args)
    sys.stdout.write(made + "\n")


if __name__ == "__main__":
    main()
