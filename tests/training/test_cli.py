"""`flux-ext train` from files to files: caches, resuming, processes, and what is refused."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import CLIPTextModel, T5EncoderModel

from benchmarks.support.processes import forking
from diffusers_flux_ext import FluxLoRAFusion, tiny_flux_path
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.trained import ExportInfo, LoRAOptions, add_lora, from_scratch
from tests.fixtures.trained import shake
from tests.fixtures.training_runs import REGIONS, content, curve, result, train, train_on_the_cpu, write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_example_data(tmp_path_factory.mktemp("data") / "shapes", 9))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, content(data, folder, conditions=[REGIONS], run={"average": {"decay": 0.5}})) == 0
    return folder


def test_a_run_writes_what_it_says(data, tmp_path, capsys):
    made = content(
        data, tmp_path, validation={"every": 2, "images_every": 4, "num_inference_steps": 1},
        export={"formats": ["diffusers", "kohya"], "license": "apache-2.0"},
        run={"logs": ["terminal", "jsonl", "csv"]},
    )  # fmt: skip
    assert train(tmp_path, made) == 0
    said = capsys.readouterr().out
    assert "9 samples in an epoch" in said
    for name in ("pytorch_lora_weights", "lora_kohya"):
        path = tmp_path / "run" / "result" / f"{name}.safetensors"
        assert f"Wrote {path}" in said
        assert load_file(path)
    assert len(curve(tmp_path)) == 4
    assert "update 4 of 4: loss " in said
    assert Image.open(tmp_path / "run" / "images" / "step-00000004.png").size[0] > 100
    lines = (tmp_path / "run" / "logs" / "log.csv").read_text().splitlines()
    assert "validation/loss" in lines[0]
    assert len(lines) == 7
    assert train(tmp_path, made) == 0
    assert "Wrote" in capsys.readouterr().out
    assert len(curve(tmp_path)) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_samples_give_the_same_run_bit_for_bit(whole, data, tmp_path, workers, capsys):
    made = content(data, tmp_path, conditions=[REGIONS], run={"average": {"decay": 0.5}})
    made["data"] |= {"cache": str(tmp_path / "cache"), "workers": workers}
    assert train(tmp_path, made, "--stage", "cache") == 0
    assert "All samples are encoded" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert train(tmp_path, made) == 0
    assert curve(tmp_path) == curve(whole)
    assert same(result(tmp_path), result(whole))


def test_a_complete_cache_needs_no_encoders(data, tmp_path, monkeypatch, capsys):
    made = content(data, tmp_path, conditions=[REGIONS])
    made["data"]["cache"] = str(tmp_path / "cache")
    path = write(tmp_path, made)
    assert main(["train", path, "--stage", "cache"]) == 0

    def refuse(*arguments, **options):
        raise OSError("an encoder was loaded")

    for each in (CLIPTextModel, T5EncoderModel, AutoencoderKL):
        monkeypatch.setattr(each, "from_pretrained", refuse)
    assert main(["train", path]) == 0
    # Other captions are not in the cache.
    assert main(["train", path, "data.sources.0.prefix=red", f"output={tmp_path / 'other'}"]) != 0
    assert "an encoder was loaded" in capsys.readouterr().err


def test_a_longer_run_goes_on_from_a_killed_one(whole, data, tmp_path, monkeypatch):
    made = content(data, tmp_path, conditions=[REGIONS], run={"average": {"decay": 0.5}})
    from diffusers_flux_ext.training.run import trainer

    update = trainer.Trainer._update

    def killed(self, number):
        if number == 3:
            raise KeyboardInterrupt
        update(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_update", killed)
        assert train(tmp_path, made) == 130
    assert train(tmp_path, made) == 0
    assert curve(tmp_path) == curve(whole)
    assert same(result(tmp_path), result(whole))


@pytest.mark.slow
def test_runs_killed_at_random_moments_end_as_an_unbroken_one(data, tmp_path):
    """Each process is killed outright some moments after it has begun to write."""
    kills = int(os.environ.get("FLUX_EXT_KILLS", "3"))
    changes = {"run": {"updates": 12, "save_every": 1}, "conditions": [REGIONS]}
    assert train(tmp_path / "whole", content(data, tmp_path / "whole", **changes)) == 0
    rng, folder = random.Random(1), tmp_path / "killed"
    made = content(data, folder, **changes)
    for _ in range(kills):
        child = os.fork()
        if not child:
            train(folder, made)
            os._exit(0)
        time.sleep(rng.uniform(0.5, 3.0))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert train(folder, made) == 0
    assert curve(folder) == curve(tmp_path / "whole")
    assert same(result(folder), result(tmp_path / "whole"))


def test_another_configuration_does_not_go_on(whole, data, capsys):
    made = content(data, whole, conditions=[REGIONS], run={"average": {"decay": 0.5}})
    assert train(whole, made, "optimizer.lr=0.02") == 1
    assert "`optimizer.lr` 0.01 (now 0.02)" in capsys.readouterr().err
    table = Path(data)
    before = table.read_text()
    table.write_text(json.dumps([{**row, "prompt": "a lake"} for row in json.loads(before)]))
    assert train(whole, made) == 1
    assert "`content of.the rows of the data`" in capsys.readouterr().err
    table.write_text(before)
    assert train(whole, made, "run.accumulation=2") == 1
    assert "`run.accumulation * processes` 1 (now 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.sources.0.path=none.json"], "none.json"),
        (["model.device=cuda:7"], "`model.device` is 'cuda:7'"),
        (["conditions=[{type: EntityRegion}]"], "did you mean 'EntityRegions'"),
        (["conditions=[{type: EntityRegions, inputs: {promptz: prompt}}]"], "did you mean 'prompts'"),
        (
            ["conditions=[{type: InpaintRegion, inputs: {image: image, mask: image}}]"],
            "InpaintRegion changes the latents",
        ),
        (["train.lora.targets=[attn.nothing]"], "attn.nothing"),
        (["data.held_out=9"], "`data.held_out` is 9, but there are 9 samples"),
        (["model.path=nowhere"], "nowhere"),
        (["run.logs=[jsnl]"], "`run.logs` has 'jsnl'; expected some of"),
        (["run.logs=[clearml]"], "pip install clearml"),
        (["output=pyproject.toml/run"], "`pyproject.toml` is not a folder"),
        (["data.sources.0.path=nothing/metadata.json"], "nothing/metadata.json"),
        (["run={epochs: 1, batch_size: 16}"], "lower `run.batch_size`"),
        (["train.lora.rnk=3"], "did you mean `train.lora.rank`?"),
    ],
)
def test_wrong_runs_say_so_and_write_nothing(data, tmp_path, capsys, changes, message):
    assert train(tmp_path, content(data, tmp_path), *changes) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_entries_may_follow_options(data, tmp_path, capsys):
    path = write(tmp_path, content(data, tmp_path))
    assert main(["train", path, "run.updates=2", "--print-config", "run.batch_size=3"]) == 0
    run = yaml.safe_load(capsys.readouterr().out)["run"]
    assert (run["updates"], run["batch_size"]) == (2, 3)
    for wrong in (["--frobnicate=3"], ["--dry-run", "frobnicate"]):
        with pytest.raises(SystemExit):
            main(["train", path, *wrong])
        assert f"unrecognized arguments: {wrong[-1]}" in capsys.readouterr().err


def test_a_dry_run_loads_no_weights(data, tmp_path, capsys):
    assert train(tmp_path, content(data, tmp_path), "--dry-run") == 0
    said = capsys.readouterr().out
    assert "LoRA: " in said
    assert "GiB in float32" in said
    assert not (tmp_path / "run").exists()
    assert train(tmp_path, content(data, tmp_path), "--print-config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["optimizer"]["lr"] == 0.01
    assert main(["train"]) == 2
    assert main(["train", str(tmp_path / "nothing.yaml")]) == 2
    assert "There is no file" in capsys.readouterr().err


def test_a_module_from_scratch_with_a_lora_and_weights(data, tmp_path):
    net = {"kind": "controlnet", "train": True, "sizes": {"num_layers": 1, "num_single_layers": 0}}
    control = {"type": "ControlNetImage", "inputs": {"image": "controlnet_image"}, "modules": {"controlnet": net}}
    made = content(data, tmp_path, conditions=[control, REGIONS], run={"updates": 2})
    assert train(tmp_path, made) == 0
    assert (tmp_path / "run" / "result" / "controlnet" / "config.json").is_file()
    assert result(tmp_path)
    made = content(
        data, tmp_path / "full", train={"lora": None, "weights": ["transformer_blocks.0"]}, run={"updates": 1}
    )
    assert train(tmp_path / "full", made) == 0
    assert (tmp_path / "full" / "run" / "result" / "transformer" / "config.json").is_file()


def test_gates_over_loras(data, tmp_path):
    loras = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for path, seed in zip(loras, (1, 2), strict=True):
        transformer = FluxTransformer2DModel.from_pretrained(tiny_flux_path(), subfolder="transformer")
        lora = add_lora(transformer, LoRAOptions("attention+mlp", rank=2), seed=seed)
        shake(lora)
        lora.export(tmp_path / "loras", ExportInfo("tiny"))[0].rename(path)
    train = {"lora": None, "fusion": {"loras": [str(path) for path in loras]}}
    made = content(data, tmp_path, train=train, export={"single_file": True}, model={"gradient_checkpointing": True})
    assert main(["train", write(tmp_path, made)]) == 0
    result = tmp_path / "run" / "result"
    gates = FluxLoRAFusion.from_pretrained(result / "lora_fusion")
    torch.manual_seed(0)
    fresh = from_scratch("lora-fusion", transformer, seed=0).state_dict()
    moved = [not torch.equal(value, fresh[name]) for name, value in gates.state_dict().items()]
    assert sum(moved) > len(moved) / 2
    assert len(list(result.glob("lora_fusion*.safetensors"))) == 1


def test_loras_of_the_text_encoders(data, tmp_path):
    rank = {"rank": 2, "targets": "attention"}
    made = content(data, tmp_path, train={"text_encoder_lora": rank, "text_encoder_2_lora": rank}, run={"updates": 2})
    assert train(tmp_path, made) == 0
    factors = {name: value for name, value in result(tmp_path).items() if "lora_B" in name}
    for model in ("transformer.", "text_encoder.", "text_encoder_2."):
        assert any(name.startswith(model) and value.any() for name, value in factors.items()), model


@pytest.mark.slow
def test_two_processes_equal_one(whole, data, tmp_path):
    """Two processes with one sample each, which stream their blocks, against one that accumulates two."""
    curves = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        made = content(data, folder, conditions=[REGIONS], run={"accumulation": 3 - processes})
        # Adam would turn the rounding of tiny gradients into whole steps.
        made["optimizer"] = {"name": "torch.optim.SGD", "lr": 0.1}
        if processes == 2:
            made["model"] = {**made["model"], "gradient_checkpointing": True, "resident": "0GB"}
        path = write(folder, made)
        if processes == 1:
            assert main(["train", path]) == 0
        else:
            # As `torchrun --standalone --nproc_per_node 2` does it, but for the two interpreters.
            forking()
            alone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "two"}
            config = LaunchConfig(1, 1, 2, start_method="forkserver", monitor_interval=0.1, **alone)
            assert elastic_launch(config, train_on_the_cpu)(path, {}) == {0: 0, 1: 0}
        curves.append((curve(folder), result(folder)))
    assert curves[1][0] == pytest.approx(curves[0][0], rel=1e-5)
    for name, value in curves[0][1].items():
        torch.testing.assert_close(curves[1][1][name], value, rtol=1e-4, atol=1e-5)
