"""What shorter texts of EliGen's entities give and cost: scores of the tiny model, and time of a larger one's step.

python -m benchmarks.entity_text --scenes 128
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.utils import logging

from benchmarks.eligen import tiny_transformer
from benchmarks.entity_step import make_entity_step, own_sides
from benchmarks.training.drawing import BATCH, draw, load_pipeline
from benchmarks.training.intervals import interval
from benchmarks.training.speed import interleaved
from diffusers_flux_ext import EntityRegions, flux_shapes, tiny_flux_path


LORA = "tiny_flux_eligen_lora.safetensors"
LENGTHS: tuple[int | Literal["auto"], ...] = (16, 32, 64, "auto")
SIDE, PROMPT, OWN = 32, 512, 12
"""Tokens on a side of the image, of the prompt, and of an entity's own text, in the larger model's step."""


def score(pipe: Any, scenes: Sequence[flux_shapes.Scene], length: int | Literal["auto"]) -> list[tuple[float, float]]:
    """Draw scenes and return the shares of entities with the right colour, and with the right shape, of each."""
    found = []
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        boxes = [flux_shapes.entity_boxes(scene) for scene in part]
        prompts = [flux_shapes.entity_prompts(scene) for scene in part]
        regions = EntityRegions(prompts, boxes, max_sequence_length=length)
        texts = [f"a {scene.background} background" for scene in part]
        places = range(start, start + len(part))
        images = draw(pipe, texts, places, conditions=[regions], true_cfg_scale=2.0)
        for image, scene, own in zip(images, part, boxes, strict=True):
            scores = flux_shapes.score_entities(image, scene, own)
            found.append(
                tuple(sum(getattr(each, what) for each in scores) / len(scores) for what in ("color", "shape"))
            )
    return found


def score_table(count: int) -> str:
    """Return the table of scores."""
    pipe = load_pipeline()
    pipe.load_lora_weights(Path(tiny_flux_path()).parent, weight_name=LORA)
    scenes = flux_shapes.held_out_entity_scenes(count)
    lines = [
        "| tokens of an entity | right colour | right shape | seconds of processor time |\n",
        "|---|---|---|---|\n",
    ]
    for length in LENGTHS:
        begun = time.process_time()
        colors, shapes = zip(*score(pipe, scenes, length))
        seconds = time.process_time() - begun
        shares = [interval(values) for values in (colors, shapes)]
        cells = [
            f"{100 * each['value']:.0f} % ({100 * each['low']:.0f} to {100 * each['high']:.0f})" for each in shares
        ]
        lines.append(f"| {length} | {cells[0]} | {cells[1]} | {seconds:.0f} |\n")
    return "".join(lines)


def step_table(repeats: int) -> str:
    """Return the table of times of a step with full and with short texts, taken in turns."""
    transformer = tiny_transformer(512, 2, 4)
    lines = ["| entities | 512 tokens each, s | 12 tokens each, s | ratio |\n", "|---|---|---|---|\n"]
    for entities in (3, 6):
        sides = {
            str(tokens): own_sides(transformer, make_entity_step(transformer, SIDE, PROMPT, entities, tokens))["ours"]
            for tokens in (PROMPT, OWN)
        }
        full, own = interleaved(sides, repeats).values()
        lines.append(f"| {entities} | {full:.3f} | {own:.3f} | {own / full:.2f} |\n")
    return "".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Scores and times of shorter texts of entities.")
    parser.add_argument("--scenes", type=int, default=128, help="held-out scenes (default: 128)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of a step (default: 5)")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with torch.no_grad():
        sys.stdout.write(f"{step_table(arguments.repeats)}\n{score_table(arguments.scenes)}")


if __name__ == "__main__":
    main()
