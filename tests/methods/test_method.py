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
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.methods import METHODS, Release, Trainable, add, register_method
from diffusers_flux_ext.methods.installed import GROUP
from diffusers_flux_ext.methods.method import resolve
from diffusers_flux_ext.methods.releases import released_modules, releases
from diffusers_flux_ext.pipeline.components import extends_init


ROOT = Path(__file__).parents[2]
OTHER = '''
"""A method of another package."""
from diffusers_flux_ext import Demand, Method, Release, Trainable, register_method

METHOD = register_method(
    Method(
        package=__name__,
        name="Toy",
        about="adds one token",
        state="new",
        page="toy",
        exports={"condition": ["ToyToken"], "model": ["ToyEncoder"], "pipeline": ["FluxToyPipeline"]},
        releases=[
            Release("toy", "a toy", {"toy": ".model:ToyEncoder"}, counts="tokens", demand=lambda n: Demand(n))
        ],
        trains={"toy-encoder": Trainable(".model:ToyEncoder", ".model:make")},
    )
)
'''
MODEL = """
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

class ToyEncoder(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width=4096):
        super().__init__()
        self.token = torch.nn.Parameter(torch.ones(1, 1, width))

def make(transformer):
    return ToyEncoder(transformer.config.joint_attention_dim)
"""
CONDITION = """
from dataclasses import dataclass
import torch
from diffusers_flux_ext import Contribution, FluxCondition, TokenGroup
from .model import ToyEncoder

@dataclass(frozen=True, eq=False)
class ToyToken(FluxCondition):
    encoder: ToyEncoder

    def contribute(self, encoded, step):
        return Contribution(text=[TokenGroup("toy", self.encoder.token, torch.zeros(1, 3))])
"""
PIPELINE = """
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.pipeline.components import extends_call, extends_init
from .condition import ToyToken
from .model import ToyEncoder

class FluxToyPipeline(FluxConditionedPipeline):
    _optional_components = [*FluxConditionedPipeline._optional_components, "toy_encoder"]

    @extends_init(FluxConditionedPipeline)
    def __init__(self, *args, toy_encoder: ToyEncoder = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_modules(toy_encoder=toy_encoder)

    @extends_call(FluxConditionedPipeline)
    def __call__(self, *args, conditions=(), **kwargs):
        return super().__call__(*args, conditions=[ToyToken(self.toy_encoder), *conditions], **kwargs)
"""
# The command finds the package by its entry point; nothing else has imported it then.
USE = """
import contextlib, io, json, sys, torch, diffusers, diffusers_flux_ext
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.training.trained import from_scratch
with contextlib.redirect_stdout(io.StringIO()) as printed:
    assert main(["plan", "--method", "toy=3", "--size", "64", "--json"]) == 0
text_tokens = json.loads(printed.getvalue())["text_tokens"]
plain = diffusers_flux_ext.FluxConditionedPipeline.from_pretrained(
    diffusers_flux_ext.tiny_flux_path(), dtype=torch.float32
)
encoder = from_scratch("toy-encoder", plain.transformer)
pipe = diffusers.DiffusionPipeline.from_pretrained(
    diffusers_flux_ext.tiny_flux_path(), custom_pipeline=diffusers_flux_ext.custom_pipeline("toy"),
    trust_remote_code=True, dtype=torch.float32, toy_encoder=encoder,
)
call = dict(prompt="a red circle", height=32, width=32, num_inference_steps=1, output_type="pt")
for each in (plain, pipe):
    each.set_progress_bar_config(disable=True)
draw = lambda one: one(generator=torch.Generator().manual_seed(0), **call).images
assert not torch.equal(draw(pipe), draw(plain))
pipe.save_pretrained(sys.argv[1])
again = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
again.set_progress_bar_config(disable=True)
assert torch.equal(draw(again), draw(pipe))
print(type(again).__name__, text_tokens)
"""


def test_every_folder_is_a_method():
    folders = {path.parent.name for path in (ROOT / "diffusers_flux_ext" / "methods").glob("*/__init__.py")}
    assert folders == set(METHODS)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_record_names_what_exists(method):
    for file, names in method.exports.items():
        module = importlib.import_module(f".{file}", method.package)
        assert all(getattr(diffusers_flux_ext, name) is getattr(module, name) for name in names)
    assert (ROOT / "docs" / f"{method.page}.md").is_file(), f"write docs/{method.page}.md"
    assert bool(method.pipelines) == (method.shim() is not None), "a pipeline needs dfx_<folder>.py, and it alone"
    assert all(callable(resolve(method.package, reference)) for reference in method.references)
    assert all(callable(make) for each in method.releases for make in released_modules(each.name).values())


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
    hint = "run python -m benchmarks.tables.method_list"
    assert "".join([MARKERS[0], PAGES[page](), MARKERS[1]]) in page.read_text(), hint


def install(folder: Path, *modules: str) -> None:
    """Write what `pip` writes for a package with these entry points."""
    written = folder / "toy_methods-1.0.dist-info"
    written.mkdir()
    (written / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-methods\nVersion: 1.0\n")
    lines = [f"entry{number} = {module}" for number, module in enumerate(modules)]
    (written / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))


def test_what_is_installed_is_imported_and_what_breaks_is_named(tmp_path, monkeypatch, capsys):
    install(tmp_path, "broken_toy_methods", "whole_toy_methods")
    (tmp_path / "broken_toy_methods.py").write_text("raise RuntimeError('its weights are gone')")
    (tmp_path / "whole_toy_methods.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["plan", "--list-methods"]) == 0
    printed = capsys.readouterr()
    assert "whole_toy_methods" in sys.modules
    assert "`entry0 = broken_toy_methods`" in printed.err
    assert "RuntimeError: its weights are gone" in printed.err
    assert "entry1" not in printed.err
    assert "eligen" in printed.out


@pytest.mark.parametrize(
    "reference, error, message",
    [
        (".gates", ValueError, "'.gates'; expected a module and a name"),
        (":FluxLoRAFusion", ValueError, "expected a module and a name"),
        (".gates:Missing", AttributeError, "lora_fusion.gates` does not define `Missing`"),
    ],
)
def test_wrong_references_are_named_when_a_method_is_registered(reference, error, message):
    method = METHODS["lora_fusion"]
    trained = {"other": Trainable(".gates:FluxLoRAFusion", reference)}
    with pytest.raises(error, match=message):
        register_method(replace(method, trains=trained))


def test_a_component_without_an_annotation_is_named():
    def __init__(self, *args, tint_encoder=None, **kwargs): ...

    with pytest.raises(TypeError, match="\\['tint_encoder'\\] .* have no annotation"):
        extends_init(diffusers_flux_ext.FluxConditionedPipeline)(__init__)


def test_a_method_of_another_package(tmp_path):
    folder = tmp_path / "toy_methods" / "toy"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    (folder / "__init__.py").write_text(OTHER)
    (folder / "model.py").write_text(MODEL)
    (folder / "condition.py").write_text(CONDITION)
    (folder / "pipeline.py").write_text(PIPELINE)
    (folder / "dfx_toy.py").write_text("from toy_methods import FluxToyPipeline  # noqa: F401\n")
    install(tmp_path, "toy_methods.toy")
    path = [str(tmp_path), str(ROOT)]
    script = f"import sys; sys.path[:0] = {path}\n{USE}"
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "saved")], capture_output=True, text=True, check=False
    )
    assert result.stdout.split() == ["FluxToyPipeline", "515"], result.stderr
