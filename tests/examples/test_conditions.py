"""Every example tells its arguments, and those of the conditions draw with tiny components."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.support.tiny.attribute_values import published_state_dict, tiny_value_encoder
from benchmarks.support.tiny.controlnet import PICTURE, tiny_controlnet
from benchmarks.support.tiny.infinite_you import ColorFaceEncoder, tiny_projector
from benchmarks.support.tiny.lora_encoder import tiny_lora, tiny_lora_encoder
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("[!_]*.py"))
SHORT = ["--steps", "1", "--size", "32", "48"]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `main` of an example on the CPU and returns the picture that it writes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.syspath_prepend(str(EXAMPLES[0].parent))

    def main(name: str, *arguments: Any, out: str = "out.png", **replaced: Any) -> np.ndarray:
        module = load(EXAMPLES[0].parent / f"{name}.py")
        for attribute, value in replaced.items():
            monkeypatch.setattr(module, attribute, value)
        target = tmp_path / out
        words = [
            name,
            *map(str, arguments),
            "--out",
            str(target.parent if name in ("eligen", "ip_adapter") else target),
        ]
        monkeypatch.setattr(sys, "argv", words)
        module.main()
        return np.asarray(Image.open(target))

    return main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, weights and the pipelines of the models that the examples take."""
    root = tmp_path_factory.mktemp("examples")
    for name, channels in (("model", 64), ("fill", 384), ("flex", 196)):
        transformer = tiny_transformer(0, in_channels=channels, out_channels=64)
        tiny_pipeline(FluxConditionedPipeline, transformer=transformer).save_pretrained(root / name)
    PICTURE.resize((48, 32)).save(root / "picture.png")
    Image.new("L", (48, 32)).save(root / "black.png")
    Image.linear_gradient("L").resize((48, 32)).save(root / "mask.png")
    return root


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_tells_its_arguments(path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        load(path).main()
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--out" in shown or path.stem.startswith("score")
    assert "--vram" in shown or path.stem in ("attach", "score_tiny_eligen", "train_tiny_flux")


def test_references(run, folder):
    pictures = [folder / "picture.png", folder / "mask.png"]
    options = ["--model", folder / "model", "--prompt", "a cat", "--max-area", 1024, *SHORT]
    image = run("references", *pictures, "--scale", 1, 0.5, *options)
    assert image.shape == (32, 48, 3)
    assert (image != run("references", *pictures, "--layout", "offset", *options)).any()


def test_fill(run, folder):
    options = [folder / "picture.png", folder / "mask.png", "--model", folder / "fill", "--prompt", "a cat"]
    image = run("fill", *options, "--steps", 1)
    kept = np.asarray(Image.open(folder / "mask.png")) < 100
    assert (image[kept] == np.asarray(Image.open(folder / "picture.png"))[kept]).all()
    assert (image != run("fill", *options, "--steps", 1, "--entity", "a red dog")).any()


def test_flex(run, folder):
    options = ["--model", folder / "flex", "--prompt", "a cat", *SHORT]
    image = run("flex", *options, "--image", folder / "picture.png", "--mask", folder / "mask.png")
    assert image.shape == (32, 48, 3)
    assert (image != run("flex", *options, "--control", folder / "picture.png")).any()


def test_controlnet(run, folder):
    tiny_controlnet(1, "union").save_pretrained(folder / "controlnet")
    options = ["--left", folder / "picture.png", "--left-mode", "depth", "--end", 1, *SHORT]
    options += ["--model", folder / "model", "--controlnet", folder / "controlnet"]
    image = run("controlnet", *options, "--right", folder / "mask.png")
    assert image.shape == (32, 48, 3)
    assert (image != run("controlnet", *options, "--right", folder / "black.png")).any()


def test_infinite_you(run, folder):
    tiny_controlnet(7).save_pretrained(folder / "infusenet" / "InfuseNetModel")
    projector = tiny_projector()
    options = ["--infinite-you", folder / "infusenet", "--arcface", "none", "--insightface", "none", *SHORT]
    options += ["--model", folder / "model", "--person", folder / "picture.png"]

    class Projector:
        @staticmethod
        def from_single_file(path: Path, torch_dtype: torch.dtype) -> Any:
            return projector

    parts = {"InsightFaceEncoder": lambda *args, **kwargs: ColorFaceEncoder(), "InfiniteYouImageProjector": Projector}
    image = run("infinite_you", *options, **parts)
    assert image.shape == (32, 48, 3)
    assert (image != run("infinite_you", *options, "--person", folder / "mask.png", **parts)).any()


def test_attribute_control(run, folder):
    save_file(published_state_dict(tiny_value_encoder(), 0), folder / "brightness.safetensors")
    options = ["--model", folder / "model", "--size", 32, "--steps", 1, "--values", 0.1, 0.9]
    image = run("attribute_control", *options, "--attribute", f"brightness={folder / 'brightness.safetensors'}")
    assert image.shape == (32, 64, 3)
    assert (image[:, :32] != image[:, 32:]).any()


def test_lora_encoder(run, folder):
    tiny_lora_encoder().save_pretrained(folder / "encoder")
    save_file(tiny_lora(), folder / "lora.safetensors")
    options = ["--model", folder / "model", "--size", 32, "--steps", 1, "--scales", 0, 1]
    image = run("lora_encoder", *options, "--encoder", folder / "encoder", "--lora", folder / "lora.safetensors")
    assert image.shape == (32, 64, 3)
    assert (image[:, :32] != image[:, 32:]).any()


@pytest.mark.parametrize("name", ["eligen", "ip_adapter"])
def test_a_budget_changes_nothing(run, name):
    out = {"eligen": "entities.png", "ip_adapter": "one.png"}[name]
    assert (run(name, "--steps", 1, out=out) == run(name, "--steps", 1, "--vram", 0.3, out=out)).all()


def test_a_gguf_file_is_written_and_drawn_with(run, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    assert run("quantised", "--steps", 1, "--vram", 0.3).shape == (128, 128, 3)
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("name, pictures", [("eligen", ("entities", "redrawn")), ("ip_adapter", ("one", "regions"))])
def test_those_with_the_embedded_model(run, tmp_path, name, pictures):
    image = run(name, "--steps", 1, out=f"{pictures[0]}.png")
    other = np.asarray(Image.open(tmp_path / f"{pictures[1]}.png"))
    assert image.shape == other.shape == (128, 128, 3)
    assert (image != other).any()


def test_the_conditions_of_a_stock_pipeline_are_attached(run):
    image = run("attach", "--steps", 1)
    assert image.shape == (128, 128, 3)
    assert (image != run("attach", "--steps", 1, attach_conditions=lambda pipe, conditions: None)).any()
