"""Write the table of `docs/low_vram.md`: the smallest and the recommended budget of each method at released sizes.

Run from the repository's root; nothing is loaded, all figures come from shapes:

    python -m benchmarks.tables.low_vram
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.methods import write_between_markers
from diffusers_flux_ext.methods.catalog import plan_methods
from diffusers_flux_ext.methods.releases import releases
from diffusers_flux_ext.offload.budget.plan import GIB, VRAMBudgetError, VRAMPlan
from diffusers_flux_ext.offload.budget.planner import MARGIN_BYTES, MARGIN_SHARE


TARGET = Path("docs/low_vram.md")
MARKERS = ("<!-- budgets: begin -->\n", "<!-- budgets: end -->")
FOUR_BITS = {"transformer": "gguf-q4_k", "text_encoder_2": "gguf-q8_0"}
COLUMNS: dict[str, Mapping[str, str] | None] = {"bfloat16": None, "GGUF Q4_K": FOUR_BITS}
# In GiB; everything stays on a card of the larger number.
STEP, LARGEST = 0.5, 96.0


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
    loop = _plan(name, LARGEST, quantization).phase("loop")
    needed = (loop.weights + loop.activations + MARGIN_BYTES) / (1 - MARGIN_SHARE) / GIB
    return math.ceil(needed / STEP) * STEP


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
