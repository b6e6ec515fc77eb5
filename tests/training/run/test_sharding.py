"""Training whose weights are shared out over two processes by the shipped files: as one process, and what is refused."""

import shutil

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.support.processes import forking
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.run import sharding
from tests.fixtures.documentation import ROOT
from tests.fixtures.training_runs import REGIONS, content, curve, train_on_the_cpu, write


FILES = ROOT / "examples" / "training" / "accelerate"
# Adam would turn the rounding of tiny gradients into whole steps.
SGD = {"name": "torch.optim.SGD", "lr": 0.1, "options": {"momentum": 0.5}}
KINDS = {
    "lora": {"conditions": [REGIONS]},
    "full": {"train": {"lora": None, "weights": ["*.attn.*", "proj_out*"]}, "optimizer": {**SGD, "lr": 0.01}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_example_data(tmp_path_factory.mktemp("data") / "shapes", 7))


def launched(monkeypatch, name):
    """Take over the environment that `accelerate launch` makes of a shipped file."""
    file = str(FILES / f"{name}.yaml")
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", file, "-m", "train"]))
    for key, value in prepare_multi_gpu_env(args).items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)


def train_as_two(path):
    forking()
    alone = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "shared"}
    config = LaunchConfig(1, 1, 2, start_method="forkserver", monitor_interval=0.1, **alone)
    assert elastic_launch(config, train_on_the_cpu)(path) == {0: 0, 1: 0}


def made(data, folder, kind, **run):
    settings = {"optimizer": SGD, "validation": {"every": 2}, **KINDS[kind]}
    run = {"average": {"decay": 0.5}, **run}
    return content(data, folder, run=run, **settings)


def exported(folder):
    found = sorted((folder / "run" / "result").rglob("*.safetensors"))
    return {file.name: load_file(file) for file in found}


def check_same(one, two):
    assert curve(two) == pytest.approx(curve(one), rel=1e-5)
    expected, found = exported(one), exported(two)
    assert expected.keys() == found.keys()
    for name, tensors in expected.items():
        assert tensors.keys() == found[name].keys()
        for key, value in tensors.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "file"), [("lora", "fsdp2"), ("full", "fsdp2"), ("full", "fsdp2_keep_weights")])
def test_weights_that_are_shared_out_train_as_those_of_one_process(data, tmp_path, monkeypatch, kind, file):
    one = made(data, tmp_path / "one", kind, accumulation=2)
    assert main(["train", write(tmp_path / "one", one)]) == 0
    launched(monkeypatch, file)
    path = write(tmp_path / "two", made(data, tmp_path / "two", kind, accumulation=1))
    train_as_two(path)
    check_same(tmp_path / "one", tmp_path / "two")
    # As if it had been killed after the checkpoint of the second update.
    checkpoints = tmp_path / "two" / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000004")
    (checkpoints / "latest").write_text("step-00000002")
    shutil.rmtree(tmp_path / "two" / "run" / "result")
    train_as_two(path)
    check_same(tmp_path / "one", tmp_path / "two")
