"""The records of methods: what is derived from them, what is refused, and a method of another package."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import diffusers_flux_ext
from benchmarks.tables.method_list import MARKERS, PAGES
from benchmarks.tables.public_names import STUB, stub
from diffusers_flux_ext.methods import METHODS, Release, Trainable, add, register_method
from diffusers_flux_ext.methods.method import resolve
from diffusers_flux_ext.methods.releases import released_modules, releases


ROOT = Path(__file__).parents[2]
OTHER = '''
"""A method of another package."""
from diffusers_flux_ext import Demand, Method, Release, register_method

METHOD = register_method(
    Method(
        package=__name__,
        name="Toy",
        about="adds one token",
        state="new",
        page="toy",
        exports={"condition": ["ToyToken"], "pipeline": ["FluxToyPipeline"]},
        releases=[
            Release("toy", "a toy", {"toy": ".condition:make"}, counts="tokens", demand=lambda n: Demand(n))
        ],
    )
)
'''
CONDITION = """
from dataclasses import dataclass
import torch
from diffusers_flux_ext import Contribution, FluxCondition, TokenGroup

@dataclass(frozen=True, eq=False)
class ToyToken(FluxCondition):
    def contribute(self, encoded, step):
        tokens = torch.ones_like(step.prompt.hidden_states[:1, :1])
        return Contribution(text=[TokenGroup("toy", tokens, torch.zeros(1, 3))])

def make():
    return torch.nn.Linear(4, 4)
"""
PIPELINE = """
from diffusers_flux_ext import FluxConditionedPipeline
from .condition import ToyToken

class FluxToyPipeline(FluxConditionedPipeline):
    def __call__(self, *args, conditions=(), **kwargs):
        return super().__call__(*args, conditions=[ToyToken(), *conditions], **kwargs)
"""
USE = """
import sys, torch, toy_methods.toy, diffusers, diffusers_flux_ext
from diffusers_flux_ext.methods.catalog import plan_methods
pipe = diffusers.DiffusionPipeline.from_pretrained(
    diffusers_flux_ext.tiny_flux_path(), custom_pipeline=diffusers_flux_ext.custom_pipeline("toy"),
    trust_remote_code=True, dtype=torch.float32,
)
pipe.set_progress_bar_config(disable=True)
call = dict(prompt="a red circle", height=32, width=32, num_inference_steps=1, output_type="pt")
draw = lambda kind: pipe.to_pipeline(kind)(generator=torch.Generator().manual_seed(0), **call).images
assert not torch.equal(draw(type(pipe)), draw(diffusers_flux_ext.FluxConditionedPipeline))
pipe.save_pretrained(sys.argv[1])
print(type(diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])).__name__)
print(plan_methods([("toy", 3)], height=64, width=64).workload.text_tokens)
"""


def test_every_folder_is_a_method():
    folders = {path.parent.name for path in (ROOT / "diffusers_flux_ext" / "methods").glob("*/__init__.py")}
    assert folders == set(METHODS)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_record_names_what_exists(method):
    for file, names in method.exports.items():
        module = importlib.import_module(f".{file}", method.package)
        assert all(getattr(diffusers_flux_ext, name) is getattr(module, name) for name in names)
    assert (ROOT / "docs" / f"{method.page}.md").is_file()
    assert bool(method.pipelines) == (method.shim() is not None)
    assert all(callable(resolve(method.package, each)) for each in method.converters.values())
    assert all(callable(make) for each in method.releases for make in released_modules(each.name).values())
    for each in method.trains.values():
        references = [reference for reference in (each.module, each.make, each.files) if reference]
        assert all(callable(resolve(method.package, reference)) for reference in references)


def test_what_exists_already_is_refused():
    method = METHODS["eligen"]
    with pytest.raises(ValueError, match="'eligen'"):
        add(method)
    with pytest.raises(ValueError, match="EntityRegions"):
        add(replace(method, package="other.regions"))
    with pytest.raises(ValueError, match="kontext"):
        add(replace(method, package="other.regions", exports={}, releases=[Release("kontext", "again")]))
    trained = {"controlnet": Trainable(".model:Toy", ".model:make")}
    with pytest.raises(ValueError, match="`trains` of the method 'EliGen': \\['controlnet'\\] exist already"):
        add(replace(method, package="other.regions", exports={}, releases=[], trains=trained))
    with pytest.raises(AttributeError, match="Missing"):
        register_method(replace(method, exports={"condition": ["Missing"]}))
    assert "regions" not in METHODS
    assert "eligen" in releases()


def test_the_stub_is_current():
    assert STUB.read_text() == stub(), "run python -m benchmarks.tables.public_names"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_lists_of_methods_are_current(page):
    assert "".join([MARKERS[0], PAGES[page](), MARKERS[1]]) in page.read_text(), "run benchmarks.tables.method_list"


def test_a_method_of_another_package(tmp_path):
    folder = tmp_path / "toy_methods" / "toy"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text(OTHER)
    (folder / "condition.py").write_text(CONDITION)
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "dfx_toy.py").write_text("from toy_methods import FluxToyPipeline  # noqa: F401\n")
    path = [str(tmp_path), str(ROOT)]
    script = f"import sys; sys.path[:0] = {path}\n{USE}"
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "saved")], capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["FluxToyPipeline", "515"], result.stderr
