"""`flux-ext generate` draws what Python draws, and every image says how."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxControlNetModel
from PIL import Image

from diffusers_flux_ext import ControlNetImage, EntityRegions, FluxConditionedPipeline, InpaintRegion, tiny_flux_path
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.jobs import read_job
from diffusers_flux_ext.tiny import TINY_CALL, TINY_LORA


SMALL = ["--steps", "2", "--size", "64", "--device", "cpu"]
CALL = {**TINY_CALL, "num_inference_steps": 2, "width": 64, "height": 64}
ASSETS = Path(tiny_flux_path()).parent


def generate(*arguments):
    return main(["generate", *map(str, arguments)])


def pixels(path):
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


@pytest.fixture
def pipe():
    pipe = FluxConditionedPipeline.from_pretrained(tiny_flux_path(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = Image.linear_gradient("L").resize((64, 64))
    Image.merge("RGB", [photo, photo.rotate(90), photo]).save("photo.png")
    return tmp_path


def test_flags_draw_what_python_draws(folder, pipe):
    arguments = [
        "--prompt",
        "a white background",
        "--entity",
        "a red circle@0.1,0.1,0.6,0.6",
        "--control",
        "photo.png",
    ]
    arguments += ["--control-scale", "0.5", "--image", "photo.png", "--mask", "0.5,0,1,1", "--seed", "3"]
    assert generate(*arguments, *SMALL, "--out", "a.png") == 0
    pipe.load_lora_weights(ASSETS, weight_name=TINY_LORA)
    net = FluxControlNetModel.from_pretrained(ASSETS / "tiny_flux_controlnet", torch_dtype=torch.float32)
    photo = Image.open("photo.png")
    conditions = [
        ControlNetImage(net, photo, scale=0.5),
        EntityRegions(["a red circle"], [(0.1, 0.1, 0.6, 0.6)]),
        InpaintRegion(photo, (0.5, 0.0, 1.0, 1.0)),
    ]
    generator = torch.Generator().manual_seed(3)
    image = pipe("a white background", conditions=conditions, generator=generator, **CALL).images[0]
    assert pixels("a.png") == image.tobytes()


def test_an_image_per_seed_each_with_its_job(folder, pipe, capsys):
    assert generate("--prompt", "a blue star", "--seed", 1, 2, *SMALL, "--out", "out/a.png") == 0
    written = [folder / "out" / f"a_{index}.png" for index in range(2)]
    assert capsys.readouterr().out.split() == list(map(str, written))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = pipe("a blue star", num_images_per_prompt=2, generator=generators, **CALL).images
    assert [pixels(path) for path in written] == [image.tobytes() for image in images]
    assert read_job(written[1]).to_dict()["call"]["seed"] == [1, 2]


def test_an_image_is_drawn_again_from_itself_unless_an_input_has_changed(folder, capsys):
    arguments = ["--prompt", "a blue star", "--image", "photo.png", "--strength", "0.9", *SMALL]
    (folder / "out").mkdir()
    assert generate(*arguments, "--out", "out/a.png", "--save-job", "a.yaml") == 0
    assert str(folder) not in (folder / "a.yaml").read_text()
    # The input lies in the working directory, not beside the image.
    for source in ("out/a.png", "a.yaml"):
        assert generate("--job", source, "--device", "cpu", "--out", "again.png") == 0
        assert pixels("again.png") == pixels("out/a.png")
    assert generate("--job", "a.yaml", "--seed", 9, "--device", "cpu", "--out", "other.png") == 0
    assert pixels("other.png") != pixels("out/a.png")
    Image.new("RGB", (64, 64)).save("photo.png")
    capsys.readouterr()
    assert generate("--job", "out/a.png", "--out", "again.png") == 2
    assert "photo.png" in capsys.readouterr().err
    (folder / "photo.png").rename(folder / "out" / "photo.png")
    assert generate("--job", "out/a.png", "--out", "again.png") == 2
    error = capsys.readouterr().err
    assert "--image is `photo.png`, whose content has changed since" in error


def test_a_dry_run_draws_nothing_and_names_what_is_wrong(folder, capsys, monkeypatch):
    monkeypatch.setattr("diffusers_flux_ext.jobs.JobRunner.run", lambda *_, **__: pytest.fail("it was drawn"))
    assert generate("--prompt", "a", "--dry-run", "--save-job", "a.json") == 0
    assert read_job("a.json").call.prompt == "a"
    assert read_job(capsys.readouterr().out).to_dict() == read_job("a.json").to_dict()
    wrong = ["--condition", "ReduxImage:images=a.png", "--set", "call.sigma=[1]", "--dry-run"]
    assert generate("--prompt", "a", *wrong) == 2
    error = capsys.readouterr().err
    assert "did you mean `ReduxImages`" in error
    assert "did you mean `call.sigmas`" in error
    assert generate("--prompt", "a", "--dry-run", "--control", "photo.png", "--controlnet", "./nothing") == 2
    assert "--controlnet: there is no file or folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir() if path.suffix == ".png"] == ["photo.png"]


def test_jobs_are_shown_and_checked(folder, capsys):
    assert generate("--prompt", "a", "--dry-run", "--save-job", "a.yaml") == 0
    capsys.readouterr()
    assert main(["job", "show", "a.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_job("a.yaml").to_dict()
    (folder / "b.yaml").write_text("model: tiny\ncall: {prompts: a, steps: 2}\n")
    assert main(["job", "check", "a.yaml", "b.yaml", "photo.png"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "a.yaml: fine\n"
    assert "b.yaml: `call.prompts` is not known; did you mean `call.prompt`?" in shown.err
    assert "photo.png` has no job in its metadata" in shown.err
    assert main(["job", "schema"]) == 0
    assert '"EntityRegions"' in capsys.readouterr().out


def test_a_list_is_drawn_and_told(folder, capsys):
    call = "{prompt: a, width: 32, height: 32, num_inference_steps: 1, max_sequence_length: 8"
    (folder / "jobs.yaml").write_text(
        f"- {{model: tiny, call: {call}}}}}\n- {{model: tiny, call: {call}, seed: 1}}}}\n"
    )
    assert main(["run", "jobs.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert "open: 32 x 32, 1 image(s), 1 steps; 0.01 GiB of weights" in shown[0]
    assert main(["run", "jobs.yaml", "--out", "out", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("2 done of 2: ")
    assert main(["run", "jobs.yaml", "--out", "out", "--dry-run"]) == 0
    assert capsys.readouterr().out.count(": done\n") == 2
    (folder / "wrong.jsonl").write_text("[1]\n{}\n")
    assert main(["run", "wrong.jsonl", "--out", "out2"]) == 2
    error = capsys.readouterr().err
    assert "wrong.jsonl, line 1: It is list" in error or "line 1: it is list" in error.lower()
    assert "wrong.jsonl holds no job that is right" in error
    assert not (folder / "out2").exists()


class TestWithoutThePackagesOfJobs:
    """The flags that need no job draw with the core packages alone."""

    @pytest.fixture(autouse=True)
    def without(self, monkeypatch):
        for module in ("command", "plain"):
            monkeypatch.setattr(f"diffusers_flux_ext.cli.generate.{module}.missing_for_jobs", lambda: ["pydantic"])

    def test_they_draw_the_same_pixels(self, folder, monkeypatch):
        arguments = ["--prompt", "a white background", "--entity", "a red circle@0.1,0.1,0.6,0.6", "--seed", "3", "4"]
        assert generate(*arguments, *SMALL, "--out", "plain.png") == 0
        monkeypatch.setattr("diffusers_flux_ext.cli.generate.command.missing_for_jobs", list)
        assert generate(*arguments, *SMALL, "--out", "job.png") == 0
        for number in range(2):
            assert pixels(f"plain_{number}.png") == pixels(f"job_{number}.png")

    @pytest.mark.parametrize(
        "arguments, named",
        [
            (["--image", "photo.png"], "--image"),
            (["--entity", "a star@photo.png"], "--entity TEXT@MASK"),
            (["--save-job", "a.yaml"], "--save-job"),
            (["--condition", "ReduxImages:images=[photo.png]"], "--condition"),
        ],
    )
    def test_others_name_the_command_that_installs_them(self, folder, capsys, arguments, named):
        assert generate("--prompt", "a star", *arguments, *SMALL) == 2
        assert f"{named} needs pydantic: `pip install 'diffusers-flux-ext[jobs]'`" in capsys.readouterr().err
