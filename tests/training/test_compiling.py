"""Compiled blocks in training: equal results, counted graphs, and what happens beyond the limit."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig

from diffusers_flux_ext.attention import plan
from diffusers_flux_ext.testing import tiny_transformer
from diffusers_flux_ext.training import FluxTraining, compiling
from diffusers_flux_ext.training.checkpointing import checkpoint_blocks
from diffusers_flux_ext.training.compiling import GRAPHS_OF_A_SITUATION, CompiledBlocks, check_compiler
from diffusers_flux_ext.training.config import read_config
from diffusers_flux_ext.training.data import write_example_data
from diffusers_flux_ext.training.frozen import store_frozen
from tests.fixtures.training_runs import REGIONS, content, curve, result, write
from tests.fixtures.training_runs import train as run
from tests.training.samples import bare, batch, encode


# No image has as many tokens as the text: equal lengths are one symbol.
BUCKETS = [(2, 3), (4, 3), (4, 5)]


def at(rows, columns, seed=0, size=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(float(rows)), torch.arange(float(columns)))
    latents, noise = torch.randn(2, size, rows * columns, 64, generator=generator)
    return batch([], size, seed, latents=latents, noise=noise, latent_ids=ids)


def made(full=False, storage=None, checkpointing=0, conditions=()):
    transformer = tiny_transformer(0).requires_grad_(full)
    torch.manual_seed(0)
    if storage is not None:
        store_frozen(transformer, storage)
    if not full:
        transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    checkpoint_blocks(transformer, checkpointing)
    return FluxTraining(transformer, conditions)


def train(training, batches):
    parameters = [each for each in training.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    losses = []
    for each in batches:
        loss = training(each).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), {
        name: value.detach() for name, value in training.named_parameters() if value.requires_grad
    }


def compared(batches, limit=32, backend="eager", **options):
    """Train with compiled blocks and without, compare the results, and return the compiled blocks."""
    expected, weights = train(made(**options), batches)
    with made(**options) as training:
        compiled = CompiledBlocks(training.transformer, limit, backend)
        training.register_forward_pre_hook(compiled.check)
        training.on_close(compiled.close)
        losses, found = train(training, batches)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-6)
    assert not any("_orig_mod" in name for name in found)
    return compiled


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def buckets():
    return [at(*size, number) for number, size in enumerate(BUCKETS)]


def region_batches(size=1):
    """Batches whose entities are elsewhere in each sample."""
    encoded = encode("entities")[0]
    for number in range(3):
        masks = [encoded["masks"].roll(number + place, -1) for place in range(size)]
        given = {name: value.repeat(size, *[1] * (value.ndim - 1)) for name, value in encoded.items()}
        yield batch([{**given, "masks": torch.cat(masks)}], size, number)


@pytest.mark.slow
def test_one_graph_serves_all_buckets():
    compiled = compared([*buckets(), *buckets()])
    assert len(compiled.graphs) == GRAPHS_OF_A_SITUATION
    assert compiled.refused == []
    assert compiled.describe() == "Compiled 4 graphs of blocks, 32 at most."


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"checkpointing": 2}, id="checkpointing", marks=pytest.mark.full),
        pytest.param({"storage": "fp8"}, id="fp8", marks=pytest.mark.full),
        pytest.param({"full": True}, id="full", marks=pytest.mark.full),
    ],
)
def test_what_is_trained_is_the_same(options):
    compiled = compared(buckets()[1:], backend="aot_eager", **options)
    assert 0 < len(compiled.graphs) <= 2 * GRAPHS_OF_A_SITUATION


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++ on CPUs, and there is no g++")
def test_with_the_compiler_that_runs_use():
    """The first sizes may get graphs of their own, where they equal another number in it."""
    assert len(compared(buckets()[:2], backend=None).graphs) <= 2 * GRAPHS_OF_A_SITUATION


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", ["references", "ip-adapter xlabs"])
def test_conditions(name):
    encoded = encode(name)
    compiled = compared([batch(encoded, 1, number) for number in range(2)], conditions=[bare(name)])
    assert len(compiled.graphs) == GRAPHS_OF_A_SITUATION


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.full)])
def test_other_regions_need_no_other_graph(size, monkeypatch):
    monkeypatch.setattr(plan, "_masking_is_cheaper", lambda *given: False)
    compiled = compared(list(region_batches(size)), conditions=[bare("entities")])
    # The last layer skips the text's queries, with a table of its own.
    assert len(compiled.graphs) <= 2 * GRAPHS_OF_A_SITUATION
    with made(conditions=[bare("entities")]) as training:
        again = CompiledBlocks(training.transformer, 32, "eager")
        first, *others = region_batches(size)
        train(training, [first, others[0]])
        before = len(again.graphs)
        train(training, others)
        assert len(again.graphs) == before
        again.close()


@pytest.mark.slow
def test_beyond_the_limit_inputs_run_uncompiled_and_it_is_said(caplog):
    batches = [at(4, 3), at(4, 3, size=2), at(4, 5, 1, size=2), at(4, 5, 2)]
    with caplog.at_level("WARNING"):
        compiled = compared(batches, limit=GRAPHS_OF_A_SITUATION)
    assert len(compiled.graphs) == GRAPHS_OF_A_SITUATION
    # Only the batch that met the limit was traced for nothing.
    assert len(compiled.refused) == GRAPHS_OF_A_SITUATION
    said = [record.getMessage() for record in caplog.records if "compile_graphs" in record.getMessage()]
    assert len(said) == 1
    assert "(2, " in said[0]
    assert "(1, " in said[0]
    assert compiled.describe().endswith("4 more were refused, and ran uncompiled.")


@pytest.mark.full
@pytest.mark.slow
def test_a_run_reports_its_graphs_and_exports_plain_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    data = str(write_example_data(tmp_path / "data", 7))
    settings = {
        "conditions": [REGIONS],
        "run": {"average": {"decay": 0.5}, "logs": ["jsonl"]},
        "validation": {"every": 2, "images_every": 2, "num_inference_steps": 1},
    }
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    assert run(plain, content(data, plain, **settings)) == 0
    made = content(data, compiled, **settings)
    assert run(compiled, made, "model.compile=true", "run.updates=2") == 0
    assert curve(compiled) == pytest.approx(curve(plain)[:2], rel=1e-5)
    assert result(compiled).keys() == result(plain).keys()
    assert (compiled / "run" / "images" / "step-00000002.png").exists()
    lines = [json.loads(line) for line in (compiled / "run" / "logs" / "log.jsonl").read_text().splitlines()]
    reported = [line["compiled_graphs"] for line in lines if "compiled_graphs" in line]
    assert len(reported) == 2
    assert reported[-1] > 0
    assert "Compiled " in capsys.readouterr().out
    # What determines the result is the same, so a compiled run may go on uncompiled.
    assert read_config(made).identity() == read_config(made, ["model.compile=true"]).identity()


def refused(tmp_path, **model):
    with pytest.raises(ValueError) as error:
        read_config(write(tmp_path, content("nowhere", tmp_path, model={"compile": True, **model})))
    return str(error.value)


def test_what_does_not_work_is_refused(tmp_path, monkeypatch):
    assert "leave one of them out" in refused(tmp_path, resident="0GB", gradient_checkpointing=True)
    assert "take `fp8`" in refused(tmp_path, storage="nf4")
    with pytest.raises(ValueError, match="`train.memory` with `model.compile`"):
        read_config(content("nowhere", tmp_path, model={"compile": True}, train={"memory": "12GB"}))
    with pytest.raises(ValueError, match="CPUs and CUDA, but the device is 'meta'"):
        check_compiler(torch.device("meta"))


def test_a_machine_without_a_compiler_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    data = str(write_example_data(tmp_path / "data", 2))
    assert run(tmp_path, content(data, tmp_path, model={"compile": True, "device": "cpu"})) != 0
    assert "`model.compile` needs a compiler on cpu, but none of g++ is on the PATH" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
