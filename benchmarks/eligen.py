"""One transformer step with entity regions: the reference, the stock transformer with a dense mask, and ours.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.eligen --image-tokens 1024 4096 --entities 0 3 6
"""

import argparse
import statistics
import subprocess
import sys
import time

import torch
from diffusers import FluxTransformer2DModel

from benchmarks.entity_step import Side, make_entity_step, own_sides, reference_side
from benchmarks.memory import peak_mib, reset_peak
from benchmarks.support.reference.dit import reference_dit


SIDES = ("reference", "dense mask", "ours")
CONTEXT, POOLED = 64, 32


def tiny_transformer(width: int, double: int, single: int) -> FluxTransformer2DModel:
    """Return a transformer with released head size and block ratio, random weights."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=128,
        num_attention_heads=width // 128,
        joint_attention_dim=CONTEXT,
        pooled_projection_dim=POOLED,
        guidance_embeds=True,
    ).eval()


def make_sides(args: argparse.Namespace, image_tokens: int, entities: int) -> dict[str, Side]:
    """Return the three sides as functions of no arguments that run the same step with the same weights."""
    transformer = tiny_transformer(args.width, args.double, args.single)
    step = make_entity_step(transformer, round(image_tokens**0.5), args.text_tokens, entities)
    return {"reference": reference_side(reference_dit(transformer), step), **own_sides(transformer, step)}


def measure_times(args: argparse.Namespace, image_tokens: int, entities: int) -> dict[str, float]:
    """Return median seconds of each side, interleaved in one process."""
    sides = make_sides(args, image_tokens, entities)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for repeat in range(args.repeats + 1):
        for name in SIDES if repeat % 2 else SIDES[::-1]:
            start = time.perf_counter()
            sides[name]()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_memory(args: argparse.Namespace, image_tokens: int, entities: int, name: str) -> float:
    """Return peak resident memory in MiB that one step of one side adds, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.eligen", "--memory-of", name, "--width", str(args.width)]
    command += ["--double", str(args.double), "--single", str(args.single), "--text-tokens", str(args.text_tokens)]
    command += ["--image-tokens", str(image_tokens), "--entities", str(entities)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.strip().splitlines()[-1])


def parse_args() -> argparse.Namespace:
    """Return sizes and repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-tokens", type=int, nargs="+", default=[1024])
    parser.add_argument("--entities", type=int, nargs="+", default=[0, 3, 6])
    parser.add_argument("--text-tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--double", type=int, default=2)
    parser.add_argument("--single", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    args = parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        if args.memory_of:
            side = make_sides(args, args.image_tokens[0], args.entities[0])[args.memory_of]
            reset_peak()
            before = peak_mib()
            side()
            sys.stdout.write(f"{peak_mib() - before}\n")
            return
        head = "| image tokens | entities | " + " | ".join(f"{name}, s" for name in SIDES)
        head += " | vs reference | vs dense mask | " + " | ".join(f"{name}, MiB" for name in SIDES) + " |"
        sys.stdout.write(head + "\n|" + "---|" * 10 + "\n")
        for image_tokens in args.image_tokens:
            for entities in args.entities:
                times = measure_times(args, image_tokens, entities)
                memory = [measure_memory(args, image_tokens, entities, name) for name in SIDES]
                cells = [str(image_tokens), str(entities), *(f"{times[name]:.3f}" for name in SIDES)]
                cells += [f"{times[name] / times['ours']:.2f}" for name in SIDES[:2]]
                cells += [f"{mib:.0f}" for mib in memory]
                sys.stdout.write("| " + " | ".join(cells) + " |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
