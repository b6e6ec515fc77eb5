"""Time and memory of an update: the trainer against a plain loop, plans against the reference, checkpointing, caches.

python -m benchmarks.training.speed --work proofs --write docs/training_proofs.md
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.utils import logging

from benchmarks.entity_step import make_entity_step, own_sides, reference_side
from benchmarks.memory import peak_mib, reset_peak
from benchmarks.methods import write_between_markers
from benchmarks.training.drawn import TABLE
from benchmarks.training.runner import RECIPES
from benchmarks.training.worlds import WORLDS
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.run.build import Run, build_run


MARKERS = ("<!-- speed: begin -->\n", "<!-- speed: end -->")
RECIPE = RECIPES / "tiny_style_lora.yaml"
ENTITIES = (0, 3, 6)
NAMES = {"reference": "the reference's module", "dense mask": "stock transformer, dense mask", "ours": "plans"}
MEMORY_SIDE, MEMORY_BATCH = 512, 2


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return median seconds of processor time of each side; sides take turns, the first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name in list(sides)[:: 1 if repeat % 2 else -1]:
            start = time.process_time()
            sides[name]()
            if repeat:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def make_run(work: Path, name: str, *changes: str) -> Run:
    """Build a run of the style LoRA's recipe on its data."""
    WORLDS["stripes"].write(work / "worlds" / "stripes")
    run = build_run(
        read_config(
            RECIPE,
            [
                f"data.sources.0.path={work / 'worlds' / 'stripes' / TABLE}",
                f"output={work / 'speed' / name}", f"data.cache={work / 'speed' / 'cache'}", "model.device=cpu",
                "run.updates=1000", "run.average=null", *changes,
            ],
        )
    )  # fmt: skip
    if run is None:
        raise RuntimeError("The run stopped after its cache.")
    return run


def trainer_against_loop(work: Path, repeats: int) -> dict[str, float]:
    """Time updates of the trainer and of a loop with nothing but the model, the loss and the optimizer."""
    run = make_run(work, "trainer")
    transformer, trainer = run.training.transformer, run.trainer
    parameters = list(run.trained.named_parameters().values())
    optimizer = torch.optim.AdamW(parameters, 3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    samples, place = next(iter(trainer.updates.batches(0)))
    batch = trainer.make_batch(samples, place)
    text_ids = torch.zeros(batch.prompt_embeds.shape[1], 3)

    def loop() -> None:
        sigma = torch.rand(len(batch.latents))
        noise = torch.randn_like(batch.latents)
        level = sigma[:, None, None]
        noisy = (1 - level) * batch.latents + level * noise
        prediction = transformer(
            hidden_states=noisy, timestep=sigma, guidance=batch.guidance, encoder_hidden_states=batch.prompt_embeds,
            pooled_projections=batch.pooled_prompt_embeds, txt_ids=text_ids, img_ids=batch.latent_ids,
        ).sample  # fmt: skip
        torch.nn.functional.mse_loss(prediction, noise - batch.latents).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def update() -> None:
        trainer._update(trainer.step)
        trainer.step += 1

    with run.training:
        return interleaved({"plain loop": loop, "trainer": update}, repeats)


def entity_passes(entities: int, repeats: int, image_side: int = 32, length: int = 128) -> dict[str, float]:
    """Time forward and backward passes of all weights: the reference's module, the stock one with a mask, and ours."""
    # Not above: it would count in the memory of the other measurements.
    from benchmarks.support.reference.dit import reference_dit

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        num_layers=1, num_single_layers=2, attention_head_dim=128, num_attention_heads=2, joint_attention_dim=64,
        pooled_projection_dim=32, guidance_embeds=True,
    )  # fmt: skip
    step = make_entity_step(transformer, image_side, length, entities)
    dit = reference_dit(transformer).requires_grad_(True)
    sides = {"reference": reference_side(dit, step, gradients=True), **own_sides(transformer, step)}

    def passes(name: str) -> None:
        sides[name]().pow(2).mean().backward()
        for module in (transformer, dit):
            module.zero_grad()

    return interleaved({name: functools.partial(passes, name) for name in sides}, repeats)


def peak(work: Path, checkpointing: bool, cached: bool) -> float:
    """Return the peak resident memory in MiB of a process that runs two updates."""
    command = [sys.executable, "-m", "benchmarks.training.speed", "--work", str(work), "--memory-of"]
    command += [f"{int(checkpointing)}{int(cached)}"]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(made.stdout.strip().splitlines()[-1])


def run_for_memory(work: Path, which: str) -> float:
    """Run two updates and return the peak since the model was loaded; see [`peak`]."""
    changes = [
        f"model.gradient_checkpointing={'true' if which[0] == '1' else 'false'}",
        f"data.sizes.listed.listed=[[{MEMORY_SIDE}, {MEMORY_SIDE}]]", f"run.batch_size={MEMORY_BATCH}",
        f"data.cache={work / 'speed' / 'large_cache' if which[1] == '1' else 'null'}",
    ]  # fmt: skip
    run = make_run(work, f"memory_{which}", *changes)
    reset_peak()
    with run.training:
        for number in range(2):
            run.trainer._update(number)
    return peak_mib()


def table(work: Path, repeats: int) -> str:
    """Measure everything and return the tables."""
    times = trainer_against_loop(work, repeats)
    lines = ["| update | seconds of processor time | ratio |\n", "|---|---|---|\n"]
    for name, seconds in times.items():
        ratio = seconds / times["plain loop"]
        lines.append(f"| style LoRA, batch of 16, {name} | {seconds:.3f} | {ratio:.2f} |\n")
    for entities in ENTITIES:
        passes = entity_passes(entities, repeats)
        for name, seconds in passes.items():
            lines.append(
                f"| {entities} entities, 1024 image tokens, {NAMES[name]} | {seconds:.3f} "
                f"| {seconds / passes['reference']:.2f} |\n"
            )
    lines += ["\n", "| gradient checkpointing | samples | peak memory, MiB |\n", "|---|---|---|\n"]
    for cached in (True, False):
        for checkpointing in (False, True):
            used = peak(work, checkpointing, cached)
            lines.append(
                f"| {'on' if checkpointing else 'off'} | {'cached' if cached else 'encoded as they come'} "
                f"| {used:.0f} |\n"
            )
    return "".join(lines)


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description="Time and memory of an update.")
    parser.add_argument("--work", type=Path, default=Path("proofs"), help="folder of data")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", type=Path, help="write the tables into this page, between its markers")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments: Any = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    work = arguments.work.resolve()
    if arguments.memory_of:
        sys.stdout.write(f"{run_for_memory(work, arguments.memory_of)}\n")
        return
    text = table(work, arguments.repeats)
    sys.stdout.write(text)
    if arguments.write is not None:
        write_between_markers(arguments.write, text, MARKERS)


if __name__ == "__main__":
    main()
