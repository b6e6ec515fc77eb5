"""Every kind of training lowers the loss of samples that it has not seen, and only because of its conditions.

The whole trainings and their scores are those of benchmarks/training.
"""

from pathlib import Path

import pytest
import torch

from diffusers_flux_ext import flux_shapes
from tests.training.proofs.short import falls, prepare, write_world


pytestmark = [pytest.mark.slow, pytest.mark.training]
ENOUGH = 3.0
COUNT = 56


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("worlds")
    plain = flux_shapes.SHAPES
    return {
        "plain": write_world(folder / "plain", COUNT, 1, plain, "plain", None),
        "striped": write_world(folder / "striped", COUNT, 2, plain, "striped", None),
        "dark": write_world(folder / "dark", COUNT, 3, plain, "plain", (0.3, 1.0)),
        "crosses": write_world(folder / "crosses", COUNT, 4, ("cross",), "plain", None),
    }


@pytest.mark.parametrize(
    ("recipe", "world", "updates", "changes"),
    [
        ("tiny_controlnet", "plain", 24, ["optimizer.lr=0.002"]),
        ("tiny_attribute", "dark", 20, []),
        ("tiny_eligen_lora", "plain", 24, ["conditions.0.dropout=0"]),
        ("tiny_control_brightness", "dark", 24, ["optimizer.lr=0.002"]),
    ],
)
@pytest.mark.parametrize("seed", [0])
def test_the_conditions_lower_the_held_out_loss(
    worlds: dict[str, Path], tmp_path: Path, recipe: str, world: str, updates: int, changes: list[str], seed: int
) -> None:
    short = prepare(recipe, tmp_path, [worlds[world]], updates, f"seed={seed}", *changes)
    before = short.losses()
    short.run()
    after, others = short.losses(), short.losses(short.shuffled())
    assert falls(before, after) > ENOUGH
    assert falls(others, after) > ENOUGH


def test_a_style_lowers_the_loss_of_its_own_images_only(worlds: dict[str, Path], tmp_path: Path) -> None:
    short = prepare("tiny_style_lora", tmp_path / "style", [worlds["striped"]], 20)
    plain = prepare("tiny_style_lora", tmp_path / "plain", [worlds["plain"]], 20)
    others = list(plain.loss.samples)
    before, before_others = short.losses(), short.losses(others)
    short.run()
    assert falls(before, short.losses()) > ENOUGH
    assert falls(before_others, short.losses(others)) < ENOUGH


def test_all_weights_learn_a_new_shape_and_keep_the_old_predictions(worlds: dict[str, Path], tmp_path: Path) -> None:
    tables = [worlds["crosses"], worlds["plain"]]
    short = prepare("tiny_cross", tmp_path, tables, 20)
    crosses = [sample for sample in short.loss.samples if not sample.preserved]
    before = short.losses(crosses)
    short.run()
    assert falls(before, short.losses(crosses)) > ENOUGH
    assert torch.isfinite(before).all()
