"""Write the table of `docs/low_vram.md`: the smallest and the recommended budget of each method at released sizes.

Run from the repository's root; nothing is loaded, all figures come from shapes:

    python -m benchmarks.tables.low_vram
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.methods import write_between_markers
from diffusers_flux_ext.methods.catalog import plan_methods
from diffusers_flux_ext.methods.releases import releases
from diffusers_flux_ext.offload.budget.plan import VRAMBudgetError, VRAMPlan


TARGET = Path("docs/low_vram.md")
MARKERS = ("<!-- budgets: begin -->\n", "<!-- budgets: end -->")
QUANTISED = {"transformer": "gguf-q8_0", "text_encoder_2": "gguf-q8_0"}
FOUR_BITS = {"transformer": "gguf-q4_k", "text_encoder_2": "gguf-q8_0"}
COLUMNS: dict[str, Mapping[str, str] | None] = {"bfloat16": None, "GGUF Q8_0": QUANTISED, "GGUF Q4_K": FOUR_BITS}
# Budgets that are tried, in GiB: with less than the largest, blocks are copied in every step.
STEP, LARGEST = 0.5, 64.0


def _plan(name: str | None, budget: float, quantization: Mapping[str, str] | None) -> VRAMPlan:
    methods = [] if name is None else [(name, None)]
    return plan_methods(methods, budget_gib=budget, quantization=quantization)


def smallest(name: str | None, quantization: Mapping[str, str] | None) -> float:
    """Return the smallest budget that works, as the planner's own message has it."""
    try:
        _plan(name, 0.5, quantization)
    except VRAMBudgetError as error:
        return error.smallest_gib
    return 0.5


def recommended(name: str | None, quantization: Mapping[str, str] | None) -> float:
    """Return the smallest budget, in steps of half a GiB, at which a step copies no weights to the card."""
    low, high = 1, int(LARGEST / STEP)
    while low < high:
        middle = (low + high) // 2
        try:
            fits = _plan(name, middle * STEP, quantization).streamed_gib == 0
        except VRAMBudgetError:
            fits = False
        low, high = (low, middle) if fits else (middle + 1, high)
    return low * STEP


def table() -> str:
    """Return the table."""
    names: dict[str, str | None] = {"FLUX.1-dev alone": None, **{f"`{name}`": name for name in releases()}}
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for shown, name in names.items():
        cells = [f"{smallest(name, kinds):.2f} / {recommended(name, kinds):g}" for kinds in COLUMNS.values()]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table into the page."""
    write_between_markers(TARGET, f"{table()}\n", MARKERS)
    sys.stdout.write(f"{TARGET}\n")


if __name__ == "__main__":
    main()
