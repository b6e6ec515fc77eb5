"""`flux-ext describe` answers with Nexus-Gen's language model."""

import pytest
from PIL import Image

from benchmarks.support.tiny.nexus_gen import write_published_folder
from diffusers_flux_ext import NexusGenModel, QwenVLProcessor
from diffusers_flux_ext.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("describe")
    (folder / "nexus").mkdir()
    write_published_folder(folder / "nexus")
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(folder / "photo.png")
    return folder


def describe(folder, *arguments):
    given = [
        "describe",
        folder / "photo.png",
        "--nexus-gen",
        folder / "nexus",
        "--max-new-tokens",
        6,
        "--device",
        "cpu",
    ]
    return main([str(argument) for argument in [*given, *arguments]])


def test_the_answer_is_the_models(folder, capsys):
    model = NexusGenModel.from_pretrained(folder / "nexus")
    processor = QwenVLProcessor.from_pretrained(folder / "nexus")
    image = Image.open(folder / "photo.png")
    answers = []
    for question in ([], ["--question", "what is it?"]):
        assert describe(folder, *question) == 0
        answers.append(capsys.readouterr().out)
    expected = [
        model.describe(image, processor=processor, max_new_tokens=6),
        model.describe(image, "what is it?", processor=processor, max_new_tokens=6),
    ]
    assert answers == [f"{answer}\n" for answer in expected]


def test_what_is_no_image_and_what_is_no_model_are_named(folder, tmp_path, capsys):
    (tmp_path / "photo.png").write_text("no image")
    assert main(["describe", str(tmp_path / "photo.png"), "--nexus-gen", str(folder / "nexus")]) == 1
    assert "is not an image" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert (
        main(["describe", str(folder / "photo.png"), "--nexus-gen", str(tmp_path / "empty"), "--device", "cpu"]) == 1
    )
    error = capsys.readouterr().err
    assert str(tmp_path / "empty") in error
    assert error.count("\n") == 1
