"""The recipes of `examples/training` run on tiny models with the example data."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from diffusers_flux_ext.cli.main import main
from tests.fixtures.documentation import ROOT, small_models, write_repositories


RECIPES = sorted(path for path in (ROOT / "examples/training").glob("*.yaml") if not path.name.startswith("tiny_"))
# Widths of the stand-ins of vision and language models, where the released ones are the defaults.
SIZES = {
    "controlnet": ["conditions.0.modules.controlnet.sizes.num_layers=1"],
    "ip_adapter": ["conditions.0.modules.adapter.sizes={image_embed_dim: 12, num_tokens: 3}"],
    "redux": ["conditions.0.modules.image_embedder.sizes={redux_dim: 12}"],
    "step1x": ["conditions.0.modules.connector.sizes={in_channels: 32, num_layers: 1}"],
    "nexus_gen": ["conditions.0.modules.adapter.sizes={input_dim: 32}"],
    "nexus_gen_editing": [
        "conditions.0.modules.adapter.sizes={hidden_size: 32, intermediate_size: 24, num_attention_heads: 2, "
        "num_key_value_heads: 1, expand_ratio: 2, mrope_section: [2, 3, 3]}"
    ],
    "infinite_you": [
        "conditions.0.modules.image_projector.sizes={embedding_dim: 16, dim: 16, dim_head: 8, heads: 2, depth: 1}"
    ],
    "lora_encoder": ["conditions.0.modules.encoder.sizes={intermediate_size: 16, num_attention_heads: 1}"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that the recipes name, as a working directory."""
    folder = tmp_path_factory.mktemp("recipes")
    write_repositories(folder)
    rows = json.loads((folder / "shapes/metadata.json").read_text())
    (folder / "loras").mkdir()
    shutil.copytree(folder / "shapes/images", folder / "loras/images")
    named = [{**row, "lora_encoder_inputs": "style.safetensors"} for row in rows]
    (folder / "loras/metadata.json").write_text(json.dumps(named))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains(path, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    small_models(monkeypatch)
    assert main(["train", os.fspath(path), *SIZES.get(path.stem, [])]) == 0, capsys.readouterr().err
    result = Path("runs", path.stem, "result")
    assert f"Wrote {result}" in capsys.readouterr().out
    # A differential LoRA has a first and a second run.
    runs = 2 if path.stem == "differential" else 1
    assert len(list(Path("runs", path.stem).rglob("checkpoints/step-*"))) == runs
    weights = {name: value for file in result.rglob("*.safetensors") for name, value in load_file(file).items()}
    assert weights
    assert all(value.isfinite().all() for value in weights.values())


def test_the_first_recipe_is_shown_as_it_is():
    text = (ROOT / "examples/training/first_lora.yaml").read_text()
    assert f"```yaml\n{text}```" in (ROOT / "docs/training.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_named_in_the_documentation(path):
    content = yaml.safe_load(path.read_text())
    assert content["output"] == f"runs/{path.stem}"
    assert f"../examples/training/{path.name}" in (ROOT / "docs/training_recipes.md").read_text()
