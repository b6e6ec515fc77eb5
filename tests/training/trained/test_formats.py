"""Exported LoRAs mean the same to diffusers, to the reference and to this package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from benchmarks.support.lora_files import Sizes
from benchmarks.support.lora_files.build import LoRAFile
from benchmarks.support.lora_files.readers import read_diffsynth, read_diffusers, read_loaded
from benchmarks.support.lora_files.verdict import Reading, agrees
from diffusers_flux_ext.testing import tiny_text_encoder, tiny_text_encoder_2, tiny_transformer
from diffusers_flux_ext.training.trained import ExportInfo, LoRAOptions, TrainedLoRA, add_lora, export
from tests.fixtures.trained import shake


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"targets": "attention+mlp"},
    "reference's, tied, alpha below the rank": {"targets": "reference", "tied": True, "alpha": 1.5},
    "attention, stabilized": {"targets": "attention", "rank_stabilized": True},
    "ranks": {"targets": ["attention", "proj_out", "norm_out.linear"], "ranks": {"*.to_q": 5}, "alpha": 6},
    "biases": {"targets": "all-linear", "bias": True},
    "lokr": {"targets": "attention+mlp", "kind": "lokr", "alpha": 3},
    "dora": {"targets": "attention+mlp", "kind": "dora"},
}
DIFFUSERS, REFERENCE, OURS = read_diffusers, read_diffsynth, read_loaded
EVERYWHERE = ("plain", "reference's, tied, alpha below the rank", "attention, stabilized")
# What else the two read right; each other pair is a file that they drop or misread (docs/lora_conformance.md).
READ: dict[tuple[str, Callable[..., Reading]], tuple[str, ...]] = {
    ("diffusers", DIFFUSERS): (*EVERYWHERE, "ranks", "biases", "lokr", "dora"),
    ("kohya", DIFFUSERS): EVERYWHERE,
    ("onetrainer", DIFFUSERS): ("attention, stabilized",),
    ("xlabs", DIFFUSERS): ("attention, stabilized",),
    ("xlabs", OURS): ("attention, stabilized",),
    ("diffusers", REFERENCE): EVERYWHERE,
    ("kohya", REFERENCE): ("plain", "reference's, tied, alpha below the rank"),
    ("diffsynth", REFERENCE): EVERYWHERE,
    **{(name, OURS): tuple(OPTIONS) for name in ("diffusers", "kohya", "bfl", "onetrainer")},
    ("diffsynth", OURS): (*EVERYWHERE, "ranks", "lokr"),
}
CASES = [(layout, reader, options) for (layout, reader), names in READ.items() for options in names]


@pytest.fixture(scope="module")
def trained() -> Callable[[str], TrainedLoRA]:
    made: dict[str, TrainedLoRA] = {}

    def get(name: str) -> TrainedLoRA:
        if name not in made:
            transformer = tiny_transformer(**Sizes().transformer_overrides())
            made[name] = add_lora(transformer, LoRAOptions(**{"rank": 3, **OPTIONS[name]}))
            shake(made[name])
            made[name].train(False)
        return made[name]

    return get


def updates(trained: TrainedLoRA) -> dict[str, Any]:
    values = trained.state()
    return {name: update for adapter in trained.adapters.values() for name, update in adapter.updates(values).items()}


def written(trained: TrainedLoRA, layout: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    trained.formats = [layout]
    (path,) = trained.export(folder, ExportInfo("a/base"))
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())


def file_of(trained: TrainedLoRA, layout: str, folder: Path) -> LoRAFile:
    tensors, metadata = written(trained, layout, folder / "written")
    dense = {name: update.dense(torch.float64) for name, update in updates(trained).items()}
    return LoRAFile(layout, "", tensors, metadata, None, dense)


@pytest.mark.slow
@pytest.mark.parametrize("layout, reader, options", CASES, ids=[f"{c[0]}-{c[1].__name__}-{c[2]}" for c in CASES])
def test_each_format_means_the_trained_update_to_its_readers(
    trained: Callable[[str], TrainedLoRA], layout: str, reader: Callable[..., Reading], options: str, tmp_path: Path
) -> None:
    lora = trained(options)
    file = file_of(lora, layout, tmp_path)
    if options == "dora" and reader is OURS:
        file.dora.update({name: update.parts["magnitude"].double() for name, update in updates(lora).items()})
    reading = reader(file, tmp_path)
    changed = {name for name, value in reading.weights.items() if value.abs().max() > 0}
    assert changed == set(file.expected)
    for name, expected in file.expected.items():
        assert agrees(reading.weights[name], expected, 1e-6), name
    if options == "dora":
        for name, update in updates(lora).items():
            assert agrees(reading.magnitudes[name], update.parts["magnitude"].double(), 1e-6), name
    if options == "biases":
        for name, update in updates(lora).items():
            assert agrees(reading.biases[name], update.bias_delta(torch.float64), 1e-6), name


@pytest.mark.parametrize(
    "options, layout, message",
    [
        ({"bias": True}, "diffsynth", "'diffsynth' cannot hold"),
        ({"kind": "dora"}, "diffsynth", "'diffsynth' cannot hold"),
        ({"targets": "attention+mlp"}, "xlabs", "'xlabs' cannot hold .*net.0.proj` has no name in it"),
        # The fused layer also has the MLP, whose magnitudes are not trained.
        ({"kind": "dora", "targets": "attention"}, "kohya", "Only 3 of the 4 parts"),
        (
            {"kind": "lokr"},
            "diffusers",
            "LoKr becomes a LoRA of .* GiB in the layout 'diffusers'.* Write 'onetrainer'",
        ),
        ({}, "nothing", "`to` is 'nothing'; LoRAs are written as one of"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused_before_training(
    options: dict, layout: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = tiny_transformer().requires_grad_(True)
    if options.get("kind") == "lokr":
        monkeypatch.setattr(export, "MAX_GROWN", 2**16)
    with pytest.raises(ValueError, match=message):
        add_lora(transformer, LoRAOptions(rank=2, **options), formats=["diffusers", layout])
    assert not getattr(transformer, "peft_config", None)
    assert all(parameter.requires_grad for parameter in transformer.parameters())


@pytest.mark.parametrize("tied, ranks", [(True, {3}), (False, {3, 9, 12})])
def test_tied_adapters_keep_their_rank_in_fused_layouts(tied: bool, ranks: set[int], tmp_path: Path) -> None:
    lora = add_lora(tiny_transformer(), LoRAOptions("reference", rank=3, tied=tied))
    shake(lora)
    for layout in ("kohya", "diffsynth", "bfl"):
        tensors, _ = written(lora, layout, tmp_path)
        downs = {tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key or "lora_down" in key}
        assert downs == ranks


def test_text_encoders_are_in_the_same_file(tmp_path: Path) -> None:
    models: Any = {
        "transformer": tiny_transformer(**Sizes().transformer_overrides()),
        "text_encoder": tiny_text_encoder(),
        "text_encoder_2": tiny_text_encoder_2(),
    }
    options = {name: LoRAOptions("attention", rank=2 + index) for index, name in enumerate(models)}
    lora = add_lora(models, options)
    shake(lora)
    file = file_of(lora, "diffusers", tmp_path)
    for reader, components in ((OURS, tuple(models)), (DIFFUSERS, ("transformer", "text_encoder"))):
        reading = reader(file, tmp_path)
        for name, expected in file.expected.items():
            if name.partition(".")[0] in components:
                assert agrees(reading.weights[name.replace(".text_model.", ".")], expected, 1e-6), name
    assert file.metadata["training.text_encoder.rank"] == "3"
    assert file.metadata["training.rank"] == "2"


def test_the_size_of_a_lokr_as_a_lora_is_known_without_computing_it(tmp_path: Path) -> None:
    for factor in (-1, 2):
        lora = add_lora(tiny_transformer(), LoRAOptions(kind="lokr", rank=2, factor=factor))
        assert lora.formats == ["onetrainer"]
        shake(lora)
        tensors, _ = written(lora, "diffusers", tmp_path)
        factors = sum(tensor.numel() * 4 for key, tensor in tensors.items() if "lora_" in key)
        assert sum(export._bytes_as_lora(update) for update in updates(lora).values()) == factors


def test_the_average_and_the_data_type_are_written(tmp_path: Path) -> None:
    lora = add_lora(tiny_transformer(), LoRAOptions("attention", rank=2), dtype=torch.bfloat16)
    shake(lora)
    average = {name: torch.full_like(value, 0.25) for name, value in lora.state().items()}
    (path,) = lora.export(tmp_path, ExportInfo("base"), average)
    with safe_open(path, "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}
        assert all(bool((file.get_tensor(key) == 0.25).all()) for key in file.keys())
    with pytest.raises(ValueError, match="`average` does not belong"):
        lora.export(tmp_path, ExportInfo("base"), {"transformer.proj_out.lora_A.weight": torch.zeros(2, 3)})


def test_the_header_says_how_it_was_trained_and_names_no_path(tmp_path: Path) -> None:
    options = LoRAOptions(["attention", "proj_out"], rank=2, ranks={"proj_out": 4}, exclude=["*.to_k"], tied=True)
    info = ExportInfo(
        str(tmp_path / "FLUX.1-dev"), license="other", sigma_scheme="logit-normal", guidance=1.0, resolution="512",
        steps=10, seed=3, data_hash="ab", extra={"note": "x"},
    )  # fmt: skip
    lora = add_lora(tiny_transformer(), options)
    lora.formats = ["diffusers", "kohya", "bfl", "diffsynth", "onetrainer"]
    paths = lora.export(tmp_path / "out", info)
    for path in paths:
        with safe_open(path, "pt") as file:
            header = {key.removeprefix("training."): value for key, value in file.metadata().items()}
        assert header == {
            "base": "FLUX.1-dev", "license": "other", "sigma_scheme": "logit-normal", "guidance": "1.0",
            "resolution": "512", "steps": "10", "seed": "3", "data_hash": "ab", "note": "x", "kind": "lora",
            "rank": "2, 4", "alpha": "2, 4", "targets": "attention, proj_out", "excluded": "*.to_k", "tied": "True",
        }  # fmt: skip
        assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("value", ["/data/x", "in ~/x", "C:\\x", "file:///x", "a=/b"])
def test_absolute_paths_in_headers_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="`title` of the file's header is .* absolute path"):
        ExportInfo("base", title=value)
    with pytest.raises(ValueError, match="`note` of"):
        ExportInfo("base").metadata(note=value)
    with pytest.raises(TypeError, match="`extra_thing` of the file's header is a list"):
        ExportInfo("base", extra={"extra_thing": [value]})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "base, kept", [("owner/name", "owner/name"), ("/x/y/z", "z"), ("C:\\m\\f", "f"), ("./m/n", "n")]
)
def test_of_a_local_base_the_name_is_kept(base: str, kept: str) -> None:
    assert ExportInfo(base).metadata() == {"training.base": kept}
