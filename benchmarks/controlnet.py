"""Whole calls with a ControlNet: the reference's pipeline, diffusers' `FluxControlNetPipeline`, and ours.

All three encode the prompt and the control image, run the steps and decode; the time is per step.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.controlnet --image-size 512
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxControlNetModel, FluxControlNetPipeline
from PIL import Image

from benchmarks.support.reference import controlnet_input, reference_multi_controlnet, reference_pair
from diffusers_flux_ext import ControlNetImage, FluxConditionedPipeline
from diffusers_flux_ext.testing import randomise


SIDES = ("reference", "diffusers", "ours")
CASES: dict[str, dict[str, Any]] = {
    "every step": {},
    "first half": {"window": True},
    "every step, true CFG": {"guided": True},
}


def make_sides(args: argparse.Namespace, case: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the three sides as functions of no arguments that draw with the same weights and sizes."""
    wide = {"attention_head_dim": 128, "num_attention_heads": args.width // 128, "axes_dims_rope": (16, 56, 56)}
    both = reference_pair(0, num_layers=args.double, num_single_layers=args.single, **wide)
    pipe = FluxConditionedPipeline(**both.components)
    config = {**pipe.transformer.config, "num_layers": args.control_double, "num_single_layers": args.control_single}
    controlnet = randomise(FluxControlNetModel.from_config(config), 1)
    stock = pipe.to_pipeline(FluxControlNetPipeline, controlnet=controlnet)
    for quiet in (pipe, stock):
        quiet.set_progress_bar_config(disable=True)
    both.reference.controlnet = reference_multi_controlnet([controlnet], pipe.transformer)
    image = Image.effect_mandelbrot((args.image_size,) * 2, (-2, -1, 1, 1), 20).convert("RGB")
    window, guided = case.get("window", False), case.get("guided", False)
    shared = {"height": args.image_size, "width": args.image_size, "num_inference_steps": args.steps}
    ours = {"max_sequence_length": args.text_tokens, "guidance_scale": 3.5, **shared}
    ours |= {"negative_prompt": "ugly", "true_cfg_scale": 2.0} if guided else {}
    theirs = {"negative_prompt": "ugly", "cfg_scale": 2.0} if guided else {}
    end = 0.5 if window else 1.0
    inputs = [controlnet_input(image=image, end=0.5 if window else 0.0)]
    conditions = [ControlNetImage(controlnet, image, end=end)]

    def reference() -> Any:
        return both.reference(
            "a cat",
            t5_sequence_length=args.text_tokens,
            progress_bar_cmd=list,
            controlnet_inputs=inputs,
            **shared,
            **theirs,
        )

    return {
        "reference": reference,
        "diffusers": lambda: stock("a cat", control_image=image, control_guidance_end=end, **ours),
        "ours": lambda: pipe("a cat", conditions=conditions, **ours),
    }


def measure(args: argparse.Namespace, case: dict[str, Any]) -> dict[str, float]:
    """Return median processor seconds per step of each side, interleaved in one process."""
    sides = make_sides(args, case)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for repeat in range(args.repeats + 1):
        for name in SIDES if repeat % 2 else SIDES[::-1]:
            start = time.process_time()
            sides[name]()
            if repeat:
                seconds[name].append((time.process_time() - start) / args.steps)
    return {name: statistics.median(values) for name, values in seconds.items()}


def parse_args() -> argparse.Namespace:
    """Return sizes and repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=512, help="side in pixels; 16 pixels a token")
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--double", type=int, default=2)
    parser.add_argument("--single", type=int, default=4)
    parser.add_argument("--control-double", type=int, default=1)
    parser.add_argument("--control-single", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    args = parse_args()
    torch.set_num_threads(1)
    head = "| ControlNet | " + " | ".join(f"{name}, s" for name in SIDES) + " | vs reference | vs diffusers |"
    sys.stdout.write(head + "\n|" + "---|" * 6 + "\n")
    with torch.no_grad():
        for name, case in CASES.items():
            times = measure(args, case)
            cells = [name, *(f"{times[side]:.3f}" for side in SIDES)]
            cells += [f"{times[side] / times['ours']:.2f}" for side in SIDES[:2]]
            sys.stdout.write("| " + " | ".join(cells) + " |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
