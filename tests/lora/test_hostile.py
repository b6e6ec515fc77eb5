"""Broken and hostile LoRA files: refused at once by a message that names the file, and nothing is half-written."""

import os
import resource
import signal
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from benchmarks.fuzzing.judge import FINE, Bench
from benchmarks.fuzzing.lora_readers import READERS
from benchmarks.support.tiny.lora_encoder import tiny_lora_encoder
from diffusers_flux_ext import (
    FluxConditionedPipeline,
    LoRAError,
    convert_lora,
    convert_lora_file,
    detect_lora_format,
    extract_lora,
    fuse_lora_into,
    inspect_lora,
    load_lora,
    load_timestep_lora,
    merge_loras,
    resize_lora,
)
from diffusers_flux_ext.cli.main import main
from diffusers_flux_ext.lora.errors import MAX_MESSAGE, naming_files
from diffusers_flux_ext.lora.files import save_lora
from diffusers_flux_ext.lora.keys import parse_lora_key
from diffusers_flux_ext.methods.lora_encoder.inputs import read_lora_layers
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer
from tests.fixtures.sampling import share_of


LAYER = "transformer.transformer_blocks.0.attn.to_q"
PAIR = {f"{LAYER}.lora_A.weight": torch.ones(2, 32), f"{LAYER}.lora_B.weight": torch.ones(32, 2)}


# ---- a short fuzz run -----------------------------------------------------------------------------------------------

TOOLS = {reader.name: reader for reader in READERS}


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    made = {}

    def bench(name):
        if name not in made:
            made[name] = Bench(TOOLS[name], tmp_path_factory.mktemp("bench"))
        return made[name]

    return bench


@pytest.mark.slow
@given(name=st.sampled_from(sorted(TOOLS)), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=share_of(150), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_broken_files_are_read_or_refused_by_name(benches, name, seed):
    verdict = benches(name).try_seed(seed)
    assert verdict.outcome in FINE, f"{name} --case {seed} [{verdict.mutation}]: {verdict}"


# ---- errors name the file -------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def written(tensors, name="culprit.safetensors", metadata=None):
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name, metadata)
        return tmp_path / name

    return written


WIDER = {key: torch.cat([value] * 2, dim=-1) for key, value in PAIR.items()}
BROKEN_LORAS = {
    "a factor is missing": {f"{LAYER}.lora_A.weight": torch.ones(2, 32)},
    "ranks differ": {f"{LAYER}.lora_A.weight": torch.ones(3, 32), f"{LAYER}.lora_B.weight": torch.ones(32, 2)},
    "unknown": {"nothing": torch.ones(2)},
    "NaN": {key: value * float("nan") for key, value in PAIR.items()},
}


@pytest.mark.parametrize("tensors", BROKEN_LORAS.values(), ids=BROKEN_LORAS)
def test_every_reader_and_tool_names_the_file(write, tmp_path, tensors):
    path, good, out = write(tensors), write(PAIR, "good.safetensors"), tmp_path / "out.safetensors"
    pipe, weights = tiny_pipeline(FluxConditionedPipeline), tiny_transformer(0).state_dict()
    works = [
        lambda: convert_lora(path),
        lambda: convert_lora_file(path, out),
        lambda: merge_loras([good, path]),
        lambda: resize_lora(path, rank=1),
        lambda: fuse_lora_into(weights, [good, path], out),
        lambda: load_lora(pipe, path),
        lambda: load_timestep_lora(pipe, path),
        lambda: pipe.load_lora_weights(path),
        lambda: FluxConditionedPipeline.lora_state_dict(str(path)),
        lambda: read_lora_layers(tiny_lora_encoder(), path),
    ]
    for work in works:
        with pytest.raises(LoRAError, match=r"culprit\.safetensors"):
            work()
    assert not out.exists()


def test_what_is_found_after_reading_names_the_file_too(write):
    pipe, weights = tiny_pipeline(FluxConditionedPipeline), tiny_transformer(0).state_dict()
    bias = {f"{LAYER}.diff_b": torch.ones(32)}
    absent = {key.replace("blocks.0", "blocks.9"): value for key, value in PAIR.items()}
    for work, message in (
        (lambda: load_lora(pipe, write({key: value.repeat(1, 2) for key, value in PAIR.items()})), "culprit"),
        (lambda: load_lora(pipe, write(absent)), "culprit.*not have any of the layers"),
        (lambda: convert_lora(write({**PAIR, **bias}), to="diffsynth"), "culprit.*cannot hold"),
        (lambda: fuse_lora_into(weights, write(absent)), "culprit.*has no layers"),
        (lambda: read_lora_layers(tiny_lora_encoder(), write(absent)), "culprit"),
    ):
        with pytest.raises(LoRAError, match=message):
            work()


def test_an_error_names_each_file_once():
    with pytest.raises(LoRAError) as caught, naming_files("a.pt", "b.pt", {}), naming_files("c.pt", "c.pt"):
        raise LoRAError("no")
    assert str(caught.value) == "`c.pt`: no"
    with pytest.raises(LoRAError) as caught, naming_files("folder"):
        raise LoRAError("There is no file `folder/x`.")
    assert str(caught.value) == "There is no file `folder/x`."


# ---- names, numbers, shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["99999", "9" * 40, "007", "\u0663"])
def test_indices_that_no_model_has_are_not_understood(index):
    key = f"transformer.transformer_blocks.{index}.attn.to_q.lora_A.weight"
    assert parse_lora_key(key) is None
    assert parse_lora_key(key.replace(index, "9999")) is not None


def test_endless_names_are_refused_in_a_short_message(write, tmp_path):
    for name in ("dit." * 3_000_000 + "x", "transformer_blocks.0.attn1.to_q" * 100_000, "k" * 501):
        for tensors in ({name: torch.ones(1)}, write({name: torch.ones(1)})):
            with pytest.raises(LoRAError, match="characters") as caught:
                convert_lora(tensors)
            assert len(str(caught.value)) < 1000
    with pytest.raises(LoRAError, match="culprit") as caught:
        convert_lora(write({f"{i:03}" + "k" * 490: torch.ones(1) for i in range(50)}))
    assert len(str(caught.value)) <= MAX_MESSAGE + 400
    with pytest.raises(LoRAError):
        convert_lora("x" * 100_000)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e-300, float("inf"), float("nan")])
def test_alphas_beyond_float32_are_refused(write, value):
    path = write({**PAIR, f"{LAYER}.alpha": torch.tensor(value, dtype=torch.float64)})
    for work in (inspect_lora, convert_lora, lambda path: resize_lora(path, rank=1)):
        with pytest.raises(LoRAError, match=r"culprit.*alpha` is .*expected 0, or a number between"):
            work(path)
    with pytest.raises(LoRAError, match="default_alpha"):
        convert_lora(PAIR, default_alpha=value)


def test_products_that_become_infinite_are_refused():
    alpha = {f"{LAYER}.alpha": torch.tensor(1e29)}
    with pytest.raises(LoRAError, match="infinite"):
        convert_lora({**PAIR, **alpha, f"{LAYER}.lora_B.bias": torch.full((32,), 1e20)}, to="kohya")
    half = {key: value.half() for key, value in tiny_transformer(0).state_dict().items()}
    with pytest.raises(LoRAError, match="not finite"):
        fuse_lora_into(half, {**PAIR, **alpha})


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def with_bias(dtype):
    parts = {f"{LAYER}.lora_B.bias": torch.ones(32), f"{LAYER}.diff_b": torch.ones(32), **PAIR}
    return {key: value.to(dtype) for key, value in parts.items()}


@pytest.mark.parametrize("second", FLOATS)
@pytest.mark.parametrize("first", FLOATS)
@pytest.mark.parametrize("down", [0.5, 1.0])
def test_any_two_data_types_are_merged(first, second, down):
    other = {**with_bias(second), f"{LAYER}.lora_A.weight": torch.full((2, 32), down).to(second)}
    merged, _ = merge_loras([with_bias(first), other])
    factors = [merged[f"{LAYER}.lora_{side}.weight"].float() for side in "BA"]
    torch.testing.assert_close(factors[0] @ factors[1], torch.full((32, 32), 2 + 2 * down))
    torch.testing.assert_close(merged[f"{LAYER}.lora_B.bias"].float(), torch.full((32,), 4.0))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.float16])
def test_alphas_of_any_type_are_converted(dtype):
    tensors = {**PAIR, f"{LAYER}.alpha": torch.tensor(1.0).to(dtype)}
    for to in ("diffusers", "kohya"):
        found, _ = convert_lora(tensors, to=to)
        assert [float(value) for key, value in found.items() if key.endswith(".alpha")] == [1.0]


def lokr(size):
    return {f"lora_unet_double_blocks_0_img_attn_proj.lokr_w{i}": torch.ones(size, size) for i in (1, 2)}


def test_products_of_any_size_are_refused_before_they_are_built(monkeypatch):
    with pytest.raises(LoRAError, match="expected no more than"):
        convert_lora(lokr(1024))
    monkeypatch.setattr("diffusers_flux_ext.lora.writing.write.MAX_GROWN", 1000)
    with pytest.raises(LoRAError, match="resize_lora"):
        convert_lora(lokr(16))
    assert convert_lora(lokr(16), to="kohya")[0].keys() == lokr(16).keys()


def test_high_ranks_cost_no_more_than_their_layer():
    shape, name = (100_000, 4), "lora_unet_double_blocks_0_img_attn_proj"
    thin = {f"{name}.lora_down.weight": torch.ones(shape) / 1e3, f"{name}.lora_up.weight": torch.ones(shape[::-1])}
    assert inspect_lora(thin).norms["transformer_blocks.0"] == pytest.approx(400, rel=1e-3)
    hada = {f"{name}.hada_w{i}_{side}": torch.ones(8, 3000) if side == "a" else torch.ones(3000, 8) / 3000
            for i in (1, 2) for side in "ab"}  # fmt: skip
    found, _ = convert_lora(hada)
    assert max(value.numel() for value in found.values()) <= 64


def test_inspect_goes_on_where_a_factor_is_none():
    for value in (torch.ones(3), torch.tensor(1.0)):
        report = inspect_lora({**PAIR, "transformer.something.lora_B.weight": value})
        assert report.unmapped == ("transformer.something.lora_B.weight",)


@pytest.mark.parametrize("shape", [(2,), (0,), (2, 2)])
def test_alphas_that_are_no_single_number(shape):
    for tensors in (PAIR, lokr(4)):
        name = next(iter(tensors)).partition(".lo")[0]
        with pytest.raises(LoRAError, match="expected a single number"):
            inspect_lora({**tensors, f"{name}.alpha": torch.ones(shape)})
    report = inspect_lora({**PAIR, "transformer.something.alpha": torch.ones(shape)})
    assert report.unmapped == ("transformer.something.alpha",)


# ---- files ----------------------------------------------------------------------------------------------------------


def test_pickles_of_other_things_are_refused(tmp_path):
    path = tmp_path / "culprit.pt"
    stretched = torch.zeros(1).expand(100_000, 100_000)
    for content in (
        {3: torch.ones(2)},
        {None: 1},
        {**PAIR, "x": stretched},
        {**PAIR, "epoch": "x"},
        [1],
        3,
        {"a": 10**5000},
    ):
        torch.save(content, path)
        for work in (inspect_lora, convert_lora):
            with pytest.raises(LoRAError, match=r"culprit\.pt"):
                work(path)


def test_a_packed_pickle_is_not_unpacked(tmp_path):
    path, packed = tmp_path / "culprit.pt", tmp_path / "packed.pt"
    torch.save({"x": torch.zeros(2**24)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(LoRAError, match=r"packed\.pt.*unpack"):
        convert_lora(packed)


def test_pipes_and_devices_are_neither_read_nor_replaced(write, tmp_path):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for work in (inspect_lora, detect_lora_format, lambda path: convert_lora_file(write(PAIR), path, overwrite=True)):
        with pytest.raises(LoRAError, match=r"pipe\.safetensors"):
            work(pipe)
    assert pipe.is_fifo()


WEIGHT = "transformer_blocks.0.attn.to_q.weight"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.complex64])
def test_weights_that_are_not_floats_are_refused(write, tmp_path, dtype):
    weights = tiny_transformer(0).state_dict()
    path = write({**weights, WEIGHT: weights[WEIGHT].to(dtype)})
    for work in (
        lambda: fuse_lora_into(path, PAIR, tmp_path / "out.safetensors"),
        lambda: extract_lora(path, weights, rank=1),
        lambda: extract_lora(weights, path, rank=1),
    ):
        with pytest.raises(LoRAError, match="culprit"):
            work()
    assert not (tmp_path / "out.safetensors").exists()


def test_nan_in_a_checkpoint_is_refused(write):
    weights = tiny_transformer(0).state_dict()
    path = write({**weights, WEIGHT: torch.full((32, 32), float("nan"))})
    for work in (
        lambda: extract_lora(path, weights, rank=1),
        lambda: extract_lora(weights, path, rank=1),
        lambda: fuse_lora_into(path, PAIR),
    ):
        with pytest.raises(LoRAError, match=rf"culprit.*`{WEIGHT}`"):
            work()


def test_inspect_explains_files_with_nan(write, capsys):
    path = write({key: value * float("nan") for key, value in PAIR.items()})
    assert main(["lora", "inspect", str(path)]) == 0
    assert "NaN or infinite: 2 keys" in capsys.readouterr().out


@pytest.fixture
def full_disk():
    """No file takes more than 20 kB."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("safe", [True, False])
def test_a_full_disk_leaves_nothing_behind(tmp_path, full_disk, safe):
    pair = {key: value.repeat(64, 64) for key, value in PAIR.items()}
    name = "culprit.safetensors" if safe else "culprit.bin"
    works = [
        lambda: FluxConditionedPipeline.save_lora_weights(tmp_path, pair, weight_name=name, safe_serialization=safe)
    ]
    if safe:
        works.append(lambda: save_lora(tmp_path / name, pair, {}))
        works.append(lambda: convert_lora_file(pair, tmp_path / name, strict=False))
    for work in works:
        with pytest.raises(LoRAError, match="culprit"):
            work()
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(LoRAError, match="file"):
        FluxConditionedPipeline.save_lora_weights(tmp_path / "file", PAIR)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    for work in (
        lambda: FluxConditionedPipeline.save_lora_weights(tmp_path, PAIR, weight_name="culprit.safetensors"),
        lambda: convert_lora_file(PAIR, tmp_path / "culprit.safetensors"),
        lambda: save_lora(tmp_path / "culprit.safetensors", PAIR, {}),
    ):
        with pytest.raises(LoRAError, match=r"culprit\.safetensors.*Permission denied"):
            work()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_saved_loras_replace_older_ones_and_load(tmp_path):
    for value in (1.0, 2.0):
        layers = {key.removeprefix("transformer."): torch.full_like(tensor, value) for key, tensor in PAIR.items()}
        FluxConditionedPipeline.save_lora_weights(tmp_path, layers)
        found = load_file(tmp_path / "pytorch_lora_weights.safetensors")
        assert {float(tensor[0, 0]) for tensor in found.values()} == {value}
    written = []
    FluxConditionedPipeline.save_lora_weights(tmp_path, PAIR, save_function=lambda tensors, path: written.append(path))
    assert written == [str(tmp_path / "pytorch_lora_weights.safetensors")]
