"""The table of docs/choosing.md is current."""

import pytest

from benchmarks.choosing_table import CHOICES, measured_ratios, row
from diffusers_flux_ext.methods.releases import releases
from tests.fixtures.documentation import ROOT


PAGE = (ROOT / "docs" / "choosing.md").read_text()


def test_every_planned_method_has_a_row():
    # XLabs' ControlNets are smaller ones of the same kind.
    missing = releases().keys() - {choice.planned for choice in CHOICES} - {"controlnet-xlabs"}
    assert not missing, "add a row to benchmarks/choosing_table.py and run it with --write docs/choosing.md"


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.purpose)
def test_times_are_those_of_the_benchmarks(choice):
    assert (ROOT / "docs" / f"{choice.page}.md").is_file()
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {choice.purpose} |"))
    assert line.split("|")[6].strip() == (measured_ratios()[choice.measured] if choice.measured else "-")


def test_a_row_is_what_the_plans_say():
    # The whole table takes half a minute.
    choice = next(choice for choice in CHOICES if choice.planned == "flex")
    assert row(choice, measured_ratios()) in PAGE
