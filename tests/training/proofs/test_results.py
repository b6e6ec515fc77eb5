"""The numbers of docs/training_proofs.md: where they come from, and how they are computed."""

import numpy as np
import pytest

from benchmarks.training.drawing import Measured
from benchmarks.training.intervals import interval, spearman
from benchmarks.training.table import table
from diffusers_flux_ext.training.config import read_config
from tests.fixtures.documentation import ROOT


RECIPES = sorted((ROOT / "examples" / "training").glob("tiny_*.yaml"))


def test_the_table_is_that_of_the_results():
    assert table() in (ROOT / "docs" / "training_proofs.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_configuration(recipe):
    config = read_config(recipe)
    assert config.model.path == "tiny"
    assert config.output == f"runs/{recipe.stem}"


def test_ranks_ties_and_intervals():
    values = np.arange(20.0)
    assert spearman(np.stack([values, values**3], axis=1)) == pytest.approx(1)
    assert spearman(np.stack([values, -values], axis=1)) == pytest.approx(-1)
    assert spearman(np.array([[0, 0], [0, 1], [1, 0], [1, 1]])) == pytest.approx(0)
    found = interval(list(values))
    assert found["low"] < found["value"] == 9.5 < found["high"]
    assert interval([1.0] * 5) == {"value": 1.0, "low": 1.0, "high": 1.0, "items": 5}


def test_a_stopped_measure_goes_on(tmp_path):
    asked = []

    def draw(part):
        asked.extend(part)
        return [np.full((2, 2), index) for index in part]

    measured = Measured(tmp_path / "measured.jsonl")
    for count in (3, 5):
        assert measured("one", count, draw, lambda index, image: float(image.mean())) == list(range(count))
    assert asked == [0, 1, 2, 3, 4]
    assert measured("other", 1, draw, lambda index, image: 7) == [7]
