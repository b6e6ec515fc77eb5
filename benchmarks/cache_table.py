"""Which cache runs beside which condition, and how exactly.

Run from the repository's root; prints the table of docs/caches.md, or writes it there:

    python -m benchmarks.cache_table --write docs/caches.md
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.utils import logging

from benchmarks.support.conditions import CASES, METHODS, pipeline_for
from diffusers_flux_ext import TeaCacheConfig, apply_tea_cache, remove_tea_cache
from diffusers_flux_ext.testing import call_kwargs


STEPS = 6
GUIDED = {"negative_prompt": "ugly", "true_cfg_scale": 2.0}
PLAIN = {"no condition": (), "no condition, true CFG": ()}
MARKS = "<!-- table: start -->", "<!-- table: end -->"


def _attention_range(pipe: Any, skips: bool) -> dict[str, Any]:
    return {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 1 if skips else -1),
        # FasterCache cannot skip in the first step.
        "current_timestep_callback": lambda: 0 if pipe.scheduler.step_index else 1,
    }


def _faster(pipe: Any, skips: bool) -> FasterCacheConfig:
    return FasterCacheConfig(
        **_attention_range(pipe, skips),
        attention_weight_callback=lambda module: 0.5,
        is_guidance_distilled=True,
        # The default names are not those of FLUX.1.
        spatial_attention_block_identifiers=("transformer_blocks.*attn", "single_transformer_blocks.*attn"),
    )


# Settings of each cache, by pipeline, and whether it should skip anything.
CACHES: dict[str, Callable[[Any, bool], Any]] = {
    "TeaCache": lambda pipe, skips: TeaCacheConfig(3.0 if skips else 0.0),
    "first block": lambda pipe, skips: FirstBlockCacheConfig(1.5 if skips else -1.0),
    "MagCache": lambda pipe, skips: MagCacheConfig(
        num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS), retention_ratio=0.2 if skips else 1.0
    ),
    "TaylorSeer": lambda pipe, skips: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=2 if skips else 100, taylor_factors_dtype=torch.float32
    ),
    "PAB": lambda pipe, skips: PyramidAttentionBroadcastConfig(**_attention_range(pipe, skips)),
    "FasterCache": _faster,
}


@contextmanager
def enabled(pipe: Any, config: Any) -> Iterator[None]:
    """Run the pipeline's transformer with a cache inside the context."""
    own = isinstance(config, TeaCacheConfig)
    apply_tea_cache(pipe.transformer, config) if own else pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        remove_tea_cache(pipe.transformer) if own else pipe.transformer.disable_cache()


def draw(pipe: Any, names: tuple[str, ...], **arguments: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the images of a call with the named conditions, and the velocity of every step."""
    velocities: list[torch.Tensor] = []
    scheduler_step = pipe.scheduler.step

    def keep(velocity: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        velocities.append(velocity)
        return scheduler_step(velocity, *args, **kwargs)

    pipe.scheduler.step = keep
    try:
        conditions = [CASES[name].build() for name in names]
        images = pipe(**call_kwargs(num_inference_steps=STEPS, conditions=conditions, **arguments)).images
    finally:
        del pipe.scheduler.step
    return images, velocities


def compare(names: tuple[str, ...], cache: str, **arguments: Any) -> dict[str, float] | str:
    """Measure the errors of a cache beside conditions, or say why it is refused.

    Returns:
        `dict[str, float]`: the largest difference of an image when nothing is skipped (`"idle"`), the largest
        difference of a velocity when steps are skipped but their inputs do not change (`"still"`), and the PSNR in
        decibels when steps are skipped (`"psnr"`); a `str` for what is refused.
    """
    pipe = pipeline_for(*names)
    still = {**arguments, "sigmas": [0.5] * STEPS}
    exact, _ = draw(pipe, names, **arguments)
    _, expected = draw(pipe, names, **still)
    try:
        with enabled(pipe, CACHES[cache](pipe, False)):
            idle, _ = draw(pipe, names, **arguments)
        with enabled(pipe, CACHES[cache](pipe, True)):
            _, actual = draw(pipe, names, **still)
            skipping, _ = draw(pipe, names, **arguments)
    except ValueError as error:
        return str(error)
    # A condition may change its inputs during a call; only steps before that have constant inputs.
    steady = [(ours, theirs) for ours, theirs in zip(actual, expected) if torch.equal(theirs, expected[0])]
    return {
        "idle": (idle - exact).abs().max().item(),
        "still": max((ours - theirs).abs().max().item() for ours, theirs in steady),
        "psnr": psnr(skipping, exact),
    }


def psnr(images: torch.Tensor, exact: torch.Tensor) -> float:
    """Return peak signal-to-noise ratio of images in [0, 1], in decibels."""
    error = (images - exact).double().square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def _cell(result: dict[str, float] | str, reasons: list[str]) -> str:
    if isinstance(result, str):
        if result not in reasons:
            reasons.append(result)
        return f"refused ({reasons.index(result) + 1})"
    parts = ["0" if result[key] == 0 else f"{result[key]:.0e}" for key in ("idle", "still")]
    return f"{parts[0]} / {parts[1]} / " + ("all" if math.isinf(result["psnr"]) else f"{result['psnr']:.0f}")


def table() -> str:
    """Return the table in Markdown, with the reasons of what is refused."""
    reasons: list[str] = []
    lines = ["| condition | " + " | ".join(CACHES) + " |", "|---" * (1 + len(CACHES)) + "|"]
    for row in (*PLAIN, *METHODS):
        names = PLAIN.get(row, (row,))
        arguments = GUIDED if row.endswith("true CFG") else {}
        cells = [_cell(compare(names, cache, **arguments), reasons) for cache in CACHES]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", "Refused:", "", *notes])


def main() -> None:
    """Print the table, or write it between the marks of a page."""
    print_or_write(table, MARKS, __doc__ or "")


def print_or_write(make: Callable[[], str], marks: tuple[str, str], description: str) -> None:
    """Run the command line of a script that makes a part of a page."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page to write it into, between its marks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    made = make()
    if args.write is None:
        sys.stdout.write(made + "\n")
    else:
        write_between(args.write, marks, made)


def write_between(page: Path, marks: tuple[str, str], made: str) -> None:
    """Replace what stands between two marks of a page."""
    between = re.compile(re.escape(marks[0]) + ".*" + re.escape(marks[1]), re.DOTALL)
    temporary = page.with_suffix(".new")
    temporary.write_text(between.sub(lambda match: f"{marks[0]}\n{made}\n{marks[1]}", page.read_text()))
    temporary.replace(page)


if __name__ == "__main__":
    main()
