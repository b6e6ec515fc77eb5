"""What a VRAM budget holds, computed from the shapes of the released models: the tables of docs/vram.md.

Nothing here is measured, and no weights are loaded:

    python -m benchmarks.vram_table
"""

import sys

import torch

from diffusers_flux_ext import VRAMBudgetError, VRAMPlan
from diffusers_flux_ext.methods.catalog import plan_methods
from diffusers_flux_ext.methods.releases import releases


BUDGETS = (1, 2, 4, 6, 8, 12, 16, 24, 38)
FP8 = torch.float8_e4m3fn


def cells(plan: VRAMPlan) -> str:
    """Return blocks that stay, GiB per step, the VAE, the peak and host memory."""
    transformer = plan.component("transformer")
    stay = "layers" if transformer.level == "leaves" else str(len(transformer.resident))
    tile = "-" if plan.vae_tile is None else str(plan.vae_tile)
    return f"{stay} | {plan.streamed_gib:.1f} | {tile} | {plan.peak_gib:.2f} | {plan.host_gib:.1f}"


def smallest(name: str) -> float:
    """Return the smallest budget of a method."""
    try:
        plan_methods([(name, None)], budget_gib=0.1)
    except VRAMBudgetError as error:
        return error.smallest_gib
    return 0.1


def main() -> None:
    """Print both tables."""
    head = "blocks that stay | copied per step, GiB | VAE tile | peak, GiB | host, GiB"
    sys.stdout.write(f"| budget, GiB | weights | {head} |\n|" + "---|" * 7 + "\n")
    for budget in BUDGETS:
        for label, dtype in (("bf16", None), ("fp8", FP8)):
            plan = plan_methods(budget_gib=budget, storage_dtype=dtype)
            sys.stdout.write(f"| {budget} | {label} | {cells(plan)} |\n")
    sys.stdout.write(f"\n| method, 8 GiB | smallest, GiB | {head} |\n|" + "---|" * 7 + "\n")
    for name, method in releases().items():
        label = f"{name}, {method.counted}" if method.counted else name
        plan = plan_methods([(name, None)])
        sys.stdout.write(f"| {label} | {smallest(name):.2f} | {cells(plan)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
