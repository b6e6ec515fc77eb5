"""Sharing components with diffusers' pipelines, saving, and loading through every door."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxControlNetPipeline, FluxImg2ImgPipeline, FluxPipeline, pipelines

import diffusers_flux_ext
from diffusers_flux_ext import (
    AutoencoderKLFlux,
    FluxConditionedPipeline,
    FluxEliGenPipeline,
    FluxExtTransformer2DModel,
    FluxFlowMatchScheduler,
    FluxInfiniteYouPipeline,
)
from diffusers_flux_ext.methods import METHODS
from diffusers_flux_ext.testing import call_kwargs, quiet, tiny_pipeline


pytestmark = pytest.mark.versions
OURS = [FluxConditionedPipeline, FluxEliGenPipeline, FluxInfiniteYouPipeline]


def dtypes(pipe):
    return {name: module.dtype for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}


def modules(pipe):
    return {name: id(module) for name, module in pipe.components.items() if isinstance(module, torch.nn.Module)}


@pytest.mark.parametrize("pipeline_class", OURS)
def test_from_pipe_keeps_every_dtype_and_leaves_the_source(pipeline_class):
    stock = tiny_pipeline(FluxPipeline)
    stock.transformer.to(torch.bfloat16)
    before = dtypes(stock)
    ours = pipeline_class.from_pipe(stock)
    assert dtypes(stock) == dtypes(ours) == before
    assert modules(stock) == modules(ours)


@pytest.mark.parametrize("pipeline_class", [FluxPipeline, FluxImg2ImgPipeline])
def test_stock_pipelines_from_ours(pipeline_class):
    ours = tiny_pipeline(FluxEliGenPipeline).to(torch.bfloat16)
    stock = pipeline_class.from_pipe(ours, dtype=ours.dtype)
    assert set(dtypes(stock).values()) == {torch.bfloat16}
    assert modules(stock) == modules(ours)
    assert modules(ours.to_pipeline(pipeline_class)) == modules(ours)
    assert set(dtypes(ours).values()) == {torch.bfloat16}


def test_to_pipeline_carries_our_model_classes():
    ours = tiny_pipeline(FluxConditionedPipeline)
    ours.register_modules(transformer=FluxExtTransformer2DModel.from_config(ours.transformer.config))
    stock = quiet(ours.to_pipeline(FluxPipeline))
    assert isinstance(stock.transformer, FluxExtTransformer2DModel)
    assert FluxConditionedPipeline.from_pipe(stock).transformer is ours.transformer
    assert torch.equal(stock(**call_kwargs()).images, quiet(ours)(**call_kwargs()).images)


def test_from_pipe_casts_only_when_asked():
    stock = tiny_pipeline(FluxPipeline)
    assert FluxConditionedPipeline.from_pipe(stock, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_from_pipe_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="connector.*its components are"):
        FluxConditionedPipeline.from_pipe(tiny_pipeline(FluxPipeline), connector=1)


def test_from_pipe_names_what_is_missing():
    pipe = tiny_pipeline(FluxConditionedPipeline)
    with pytest.raises(ValueError, match=r"needs \['controlnet'\]"):
        pipe.to_pipeline(FluxControlNetPipeline)


@pytest.mark.parametrize("pipeline_class", OURS)
def test_save_and_load(tmp_path, pipeline_class):
    pipe = tiny_pipeline(pipeline_class)
    pipe.save_pretrained(tmp_path)
    expected = pipe(**call_kwargs()).images
    for loader in (pipeline_class, DiffusionPipeline, FluxPipeline):
        loaded = quiet(loader.from_pretrained(tmp_path))
        assert torch.equal(loaded(**call_kwargs()).images, expected)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is pipeline_class


def test_our_components_reload_through_diffusers(tmp_path):
    pipe = tiny_pipeline(FluxConditionedPipeline)
    transformer = FluxExtTransformer2DModel.from_config(pipe.transformer.config)
    transformer.load_state_dict(pipe.transformer.state_dict())
    vae = AutoencoderKLFlux.from_config(pipe.vae.config)
    vae.load_state_dict(pipe.vae.state_dict())
    pipe.register_modules(transformer=transformer, vae=vae, scheduler=FluxFlowMatchScheduler())
    pipe.save_pretrained(tmp_path)
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded.transformer) is FluxExtTransformer2DModel
    assert type(loaded.vae) is AutoencoderKLFlux
    assert type(loaded.scheduler) is FluxFlowMatchScheduler
    assert torch.equal(loaded(**call_kwargs()).images, pipe(**call_kwargs()).images)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    tiny_pipeline(FluxPipeline).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "name, pipeline_class", list(zip(["conditioned", "eligen", "infinite_you"], OURS, strict=True))
)
def test_custom_pipeline_on_a_plain_repository(plain_folder, name, pipeline_class):
    pipe = DiffusionPipeline.from_pretrained(
        plain_folder, custom_pipeline=diffusers_flux_ext.custom_pipeline(name), trust_remote_code=True
    )
    assert type(pipe) is pipeline_class


def test_custom_pipeline_needs_trust(plain_folder):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(plain_folder, custom_pipeline=diffusers_flux_ext.custom_pipeline("eligen"))


def test_an_unknown_custom_pipeline_lists_the_known_ones():
    with pytest.raises(ValueError, match="conditioned.*eligen"):
        diffusers_flux_ext.custom_pipeline("nothing")


def test_shims_have_unique_names_and_name_one_pipeline():
    names = ["conditioned", *(method.folder for method in METHODS.values() if method.pipelines)]
    files = [Path(diffusers_flux_ext.custom_pipeline(name)) for name in names]
    assert [file.name for file in files] == [f"dfx_{name}.py" for name in names]
    assert all(len(re.findall(r"import \w+Pipeline ", file.read_text())) == 1 for file in files)


def test_no_folder_is_named_like_a_package_of_diffusers_pipelines():
    taken = {entry.name for entry in Path(pipelines.__file__).parent.iterdir() if entry.is_dir()}
    package = Path(diffusers_flux_ext.__file__).parent
    assert not taken & {path.name for path in package.rglob("*") if path.is_dir()} - {"__pycache__"}


def test_a_repository_that_names_our_components_may_be_downloaded(tmp_path):
    from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders

    pipe = tiny_pipeline(FluxConditionedPipeline, scheduler=FluxFlowMatchScheduler())
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers_flux_ext", "FluxFlowMatchScheduler"]
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    custom, folders = _get_custom_components_and_folders("owner/repository", index, files, files)
    assert custom == {}
    assert "transformer" in folders


def test_a_plain_folder_loads_with_our_class(plain_folder):
    assert type(FluxEliGenPipeline.from_pretrained(plain_folder)) is FluxEliGenPipeline


SCRIPTS = {
    "package first": "import diffusers_flux_ext; from diffusers import DiffusionPipeline",
    "diffusers first": "from diffusers import DiffusionPipeline; import diffusers_flux_ext",
    "a question in between": (
        "import diffusers_flux_ext, importlib.util; importlib.util.find_spec('diffusers'); "
        "from diffusers import DiffusionPipeline"
    ),
}
RELOAD = "; import sys; print(type(DiffusionPipeline.from_pretrained(sys.argv[1])).__name__)"
AUTO_PIPELINE = (
    "import sys, diffusers_flux_ext, diffusers; diffusers.FluxEliGenPipeline; "
    "[getattr(diffusers_flux_ext, name) for name in diffusers_flux_ext.__all__]; "
    "print('diffusers.pipelines.auto_pipeline' in sys.modules)"
)
# Neither package is imported before the fork; what both import is, since it takes most of the time.
FORKS = """
import os, sys, peft, torch
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, SiglipVisionModel, T5EncoderModel
assert not {"diffusers", "diffusers_flux_ext"} & set(sys.modules)
for script in sys.argv[2:]:
    child = os.fork()
    if not child:
        exec(script, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    print("---", flush=True)
"""


@pytest.fixture(scope="module")
def fresh_processes(tmp_path_factory):
    """What the scripts print, each in a process that has imported neither diffusers nor this package."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_pipeline(FluxEliGenPipeline).save_pretrained(folder)
    scripts = {**{name: script + RELOAD for name, script in SCRIPTS.items()}, "auto pipeline": AUTO_PIPELINE}
    command = [sys.executable, "-c", FORKS, str(folder), *scripts.values()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    printed = result.stdout.split("---\n")
    return {name: text.strip() or result.stderr for name, text in zip(scripts, printed, strict=False)}


@pytest.mark.parametrize("imports", SCRIPTS)
def test_a_fresh_process_reloads_a_saved_pipeline(fresh_processes, imports):
    assert fresh_processes[imports].endswith("FluxEliGenPipeline")


def test_importing_the_package_imports_neither_torch_nor_diffusers():
    script = "import sys, diffusers_flux_ext; print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_import_leaves_auto_pipeline_alone_and_names_resolve(fresh_processes):
    assert fresh_processes["auto pipeline"].endswith("False")
