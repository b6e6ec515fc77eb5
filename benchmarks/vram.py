"""Peak memory and time of the ways to run FLUX.1 on a small card, in one run with random weights.

    python -m benchmarks.vram                       # the released size, on a CUDA device
    python -m benchmarks.vram --tiny --device cpu   # the script itself, without a GPU: no peaks, no meaning

Needs a CUDA device and about 70 GB of host memory; the reference's rows need the reference package. Each way draws the
same number of steps after a warm-up call; time and peak are those of the second call. `margin` is how far the peak
stays below the budget, in percent of it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import CLIPTokenizer, T5TokenizerFast

from diffusers_flux_ext import FluxConditionedPipeline, apply_vram_plan, disable_vram_budget, plan_vram, tiny_flux_path
from diffusers_flux_ext.methods.catalog import flux_models


GIB = 2**30
BUDGETS = (1, 2, 4, 8, 12, 14, 16, 24, 38)
LIMITS = (4, 8, 16, 24)
TINY_BUDGETS = (0.1, 1)


def build(tiny: bool) -> FluxConditionedPipeline:
    """Return a pipeline with random weights and the embedded model's tokenizers, whose vocabularies are smaller."""
    if tiny:
        pipe = FluxConditionedPipeline.from_pretrained(tiny_flux_path(), dtype=torch.float32)
    else:
        models = {name: module.to_empty(device="cpu") for name, module in flux_models().items()}
        for module in models.values():
            for tensor in (*module.parameters(), *(each for each in module.buffers() if each.is_floating_point())):
                torch.nn.init.normal_(tensor, std=0.02)
            for name, buffer in module.named_buffers():
                if name.endswith("position_ids"):
                    buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        pipe = FluxConditionedPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            tokenizer=CLIPTokenizer.from_pretrained(tiny_flux_path(), subfolder="tokenizer"),
            tokenizer_2=T5TokenizerFast.from_pretrained(tiny_flux_path(), subfolder="tokenizer_2"),
            **models,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Meter:
    """Seconds and peak GiB of calls."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device.startswith("cuda")

    def run(self, call: Callable[[], Any]) -> tuple[float, float | None]:
        """Call twice and measure the second call."""
        call()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return seconds, torch.cuda.max_memory_allocated() / GIB if self.cuda else None


@contextmanager
def placed(pipe: Any, way: str, device: str, budget: float | None, sizes: dict[str, Any]) -> Iterator[None]:
    """Offload the pipeline in one way, and bring it back to host memory afterwards."""
    if way == "budget":
        apply_vram_plan(pipe, plan_vram(pipe, budget or 8, **sizes), device)
        yield
        disable_vram_budget(pipe)
        return
    if way == "none":
        pipe.to(device)
    elif way == "model offload":
        pipe.enable_model_cpu_offload(device=device)
    elif way == "sequential offload":
        pipe.enable_sequential_cpu_offload(device=device)
    yield
    pipe.remove_all_hooks()
    pipe.to("cpu")


def reference_steps(pipe: Any, limit: float, device: str, steps: int, height: int, width: int) -> Callable[[], Any]:
    """Return the reference's own transformer with its own memory management, as many steps."""
    from benchmarks.support.reference import import_reference, reference_dit
    from benchmarks.support.reference.dit import reference_velocity

    layers = import_reference("diffsynth.core.vram.layers")
    norm = import_reference("diffsynth.models.flux_dit").RMSNorm
    dtype = pipe.transformer.dtype
    stages = {"offload": "cpu", "onload": "cpu", "preparing": device, "computation": device}
    config = {f"{stage}_device": place for stage, place in stages.items()}
    config |= {f"{stage}_dtype": dtype for stage in stages}
    modules = {torch.nn.Linear: layers.AutoWrappedLinear, norm: layers.AutoWrappedModule}
    dit = layers.enable_vram_management(
        reference_dit(pipe.transformer), modules, config, vram_limit=limit if device != "cpu" else None
    )
    for module in dit.modules():
        if hasattr(module, "onload"):
            module.onload()
    latents = torch.randn(1, 16, height // 8, width // 8, dtype=dtype, device=device)
    text = pipe.transformer.config.joint_attention_dim, pipe.transformer.config.pooled_projection_dim
    inputs = {
        "latents": latents,
        "timestep": torch.full((1,), 500.0, dtype=dtype, device=device),
        "prompt_emb": torch.randn(1, 512, text[0], dtype=dtype, device=device),
        "pooled_prompt_emb": torch.randn(1, text[1], dtype=dtype, device=device),
        "guidance": torch.full((1,), 3.5, dtype=dtype, device=device),
        "text_ids": torch.zeros(1, 512, 3, dtype=dtype, device=device),
        "image_ids": None,
    }
    return lambda: [reference_velocity(dit, **inputs) for _ in range(steps)]


def row(name: str, budget: float | None, predicted: float | None, found: tuple[float, float | None]) -> None:
    """Print one row of the table."""
    seconds, peak = found
    margin = f"{100 * (1 - peak / budget):.1f}" if budget and peak else "-"
    numbers = [f"{value:.2f}" if value is not None else "-" for value in (budget, predicted, peak)]
    sys.stdout.write(f"| {name} | {' | '.join(numbers)} | {margin} | {seconds:.2f} |\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table, or why there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="the embedded tiny model")
    parser.add_argument("--steps", type=int, default=28, help="denoising steps (default: 28)")
    parser.add_argument("--size", type=int, default=1024, help="pixels (default: 1024)")
    parser.add_argument("--without-reference", action="store_true", help="leave the reference out")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stdout.write("Skipped: there is no CUDA device. `--tiny --device cpu` shows that the script works.\n")
        return
    pipe, meter = build(args.tiny), Meter(args.device)
    tokens = 32 if args.tiny else 512
    sizes: dict[str, Any] = {"height": args.size, "width": args.size, "max_sequence_length": tokens}
    sys.stdout.write("| way | budget, GiB | predicted, GiB | peak, GiB | margin, % | seconds |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    ways: list[tuple[str, float | None]] = [("none", None)]
    ways += [("budget", budget) for budget in (TINY_BUDGETS if args.tiny else BUDGETS)]
    if meter.cuda:
        ways += [("model offload", None), ("sequential offload", None)]
    for way, budget in ways:
        with placed(pipe, way, args.device, budget, sizes):
            call = lambda: pipe("a lake", num_inference_steps=args.steps, output_type="pt", **sizes)  # noqa: E731
            predicted = plan_vram(pipe, budget, **sizes).peak_gib if budget else None
            row(way, budget, predicted, meter.run(call))
    if not args.without_reference:
        for limit in LIMITS[:1] if args.tiny else LIMITS:
            steps = reference_steps(pipe, limit, args.device, args.steps, args.size, args.size)
            row("reference, its transformer alone", limit, None, meter.run(steps))
    # Last: diffusers cannot take group offloading away from a pipeline again.
    if meter.cuda:
        pipe.enable_group_offload(torch.device(args.device), num_blocks_per_group=1, use_stream=True)
        row("group offload", None, None, meter.run(call))


if __name__ == "__main__":
    main()
