"""The cache: equal to uncached samples, made again only where something changed, safe against interruption."""

import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline
from diffusers_flux_ext.training.batch import TrainingSample
from diffusers_flux_ext.training.data import (
    BadSamples,
    CachedSamples,
    Captions,
    Columns,
    EncodedSamples,
    EncodeOptions,
    Entry,
    FolderSource,
    TrainingData,
    Transform,
    cache_samples,
    check_data,
    encode_sample,
)
from diffusers_flux_ext.training.data.cache import encoding, work
from diffusers_flux_ext.training.draws import Draws
from tests.fixtures.training_data import OPTIONS, make_conditions, make_data, noise, write_rows


VARIED = Transform(crop="random", brightness=0.3)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline(FluxConditionedPipeline)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "set")


def same(one: TrainingSample, other: TrainingSample) -> bool:
    def tensors(sample: TrainingSample) -> dict[str, torch.Tensor | None]:
        named: dict[str, torch.Tensor | None] = {"latents": sample.latents, "deviation": sample.deviation}
        named |= {"mask": sample.mask, **{f"p{text}": each[0] for text, each in sample.prompts.items()}}
        named |= {f"q{text}": each[1] for text, each in sample.prompts.items()}
        return named | {f"{i}{k}": v for i, each in enumerate(sample.conditions) for k, v in each.items()}

    first, second = tensors(one), tensors(other)
    plain = [(each.index, each.height, each.width, each.weight, each.preserved) for each in (one, other)]
    return plain[0] == plain[1] and first.keys() == second.keys() and all(
        (value is None and second[name] is None) or torch.equal(value, second[name])  # type: ignore[arg-type]
        for name, value in first.items()
    )  # fmt: skip


def cache(metadata: Path, pipe: Any, folder: Path, data: Any = None, **options: Any) -> CachedSamples:
    given = {"options": OPTIONS, "model_hash": "tiny", **options}
    return cache_samples(make_data(metadata) if data is None else data, pipe, make_conditions, folder, **given)


class Counting:
    """Counts what is encoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: list[str] = []
        self.texts: list[str] = []

        def images(pipe: Any, make: Any, loaded: Any, *rest: Any) -> TrainingSample:
            self.images.append(loaded.name)
            return encoding.encode_images(pipe, make, loaded, *rest)

        def prompt(pipe: Any, text: str, options: EncodeOptions) -> Any:
            self.texts.append(text)
            return encoding.encode_prompt(pipe, text, options)

        monkeypatch.setattr(work, "encode_images", images)
        monkeypatch.setattr(work, "encode_prompt", prompt)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def test_cached_samples_equal_uncached_ones(metadata: Path, pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "set" / "extra.json").write_text("{}")
    rows = json.loads(metadata.read_text())
    for row in rows:
        row["mask"] = row["eligen_entity_masks"][0]
    metadata.write_text(json.dumps(rows))
    data = make_data(
        metadata, transform=VARIED, variants=2, captions=Captions(shuffles=2), entry={"repeats": 3, "weight": 0.5}
    )
    data.entries[0].source.__init__(metadata, file_columns=("image", "eligen_entity_masks", "kontext_images", "mask"))  # type: ignore[misc]
    options = EncodeOptions(text_length=8, posterior=True)
    cached = cache(metadata, pipe, tmp_path / "cache", data, options=options)
    encoded = EncodedSamples(data, pipe, make_conditions, options)
    assert len(cached) == len(encoded) == 12
    for index in range(len(cached)):
        for epoch in range(2):
            one, other = cached.sample(index, epoch), encoded.sample(index, epoch)
            assert same(one, other)
            assert one.mask is not None
            assert one.deviation is not None
            assert cached.key(index) == one.signature()
        assert cached.texts(index) == encoded.texts(index)
    # A varying transform gives the visits of an epoch, and those of the next, other crops.
    assert not torch.equal(cached.sample(0, 0).latents, cached.sample(0, 1).latents)
    assert not torch.equal(cached.sample(0, 0).latents, cached.sample(1, 0).latents)


def test_what_is_encoded_is_what_the_pipeline_and_the_conditions_encode(metadata: Path, pipe: Any) -> None:
    data = make_data(metadata)
    sample = encode_sample(pipe, make_conditions, data.load(2), OPTIONS)
    hidden, pooled, _ = pipe.encode_prompt("dog 2", None, max_sequence_length=8)
    assert torch.equal(sample.prompts["dog 2"][0], hidden)
    assert torch.equal(sample.prompts["dog 2"][1], pooled)
    assert set(sample.prompts) == {"", "dog 2"}
    pixels = pipe.image_processor.preprocess(data.load(2).image)
    mean = (pipe.vae.encode(pixels).latent_dist.mean - 0.1159) * 0.3611
    assert torch.equal(sample.latents, pipe._pack_latents(mean, 1, 16, *mean.shape[2:]))
    assert sample.conditions[0]["entity_0"].shape == (1, 8, 40)
    assert sample.deviation is None
    assert all(not value.requires_grad for each in sample.conditions for value in each.values())


def test_masks_become_weights_of_tokens(metadata: Path, pipe: Any) -> None:
    data = make_data(metadata)
    loaded = data.load(0)
    mask = noise(0, 32, 48).convert("L").point(lambda value: 0)
    mask.paste(255, (0, 0, 24, 16))
    from dataclasses import replace

    sample = encode_sample(pipe, make_conditions, replace(loaded, mask=mask), OPTIONS)
    assert sample.mask is not None
    assert sample.mask.tolist() == [[1.0, 0.5, 0.0, 0.0, 0.0, 0.0]]


def test_equal_prompts_are_stored_once_and_nothing_is_made_twice(
    metadata: Path, pipe: Any, tmp_path: Path, counting: Counting
) -> None:
    data = make_data(metadata, entry={"repeats": 2})
    cache(metadata, pipe, tmp_path / "cache", data)
    assert len(counting.images) == 4
    assert sorted(counting.texts) == ["", "a cat", "dog 2", "dog 3"]
    cache(metadata, pipe, tmp_path / "cache", data)
    assert len(counting.images) == 4
    assert len(counting.texts) == 4


def change_image(folder: Path, rows: list[dict]) -> None:
    noise(77, 40, 56).save(folder / "2.png")


def change_mask(folder: Path, rows: list[dict]) -> None:
    noise(77, 40, 56).convert("L").save(folder / "2m.png")


def change_entity(folder: Path, rows: list[dict]) -> None:
    rows[2]["eligen_entity_prompts"] = ["ear"]


def change_caption(folder: Path, rows: list[dict]) -> None:
    rows[2]["prompt"] = "a horse"


def change_nothing_that_counts(folder: Path, rows: list[dict]) -> None:
    rows[2]["note"] = "seen"
    os.utime(folder / "2.png", ns=(5, 5))


CHANGES: dict[Callable[[Path, list[dict]], None], tuple[list[str], list[str]]] = {
    change_image: (["metadata.json, entry 2"], []),
    change_mask: (["metadata.json, entry 2"], []),
    change_entity: (["metadata.json, entry 2"], []),
    change_caption: ([], ["a horse"]),
    change_nothing_that_counts: ([], []),
}


@pytest.mark.parametrize(("change", "made"), CHANGES.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_changed_alone_is_made_again(
    metadata: Path, pipe: Any, tmp_path: Path, counting: Counting, change: Callable, made: tuple[list[str], list[str]]
) -> None:
    cache(metadata, pipe, tmp_path / "cache")
    counting.images.clear()
    counting.texts.clear()
    rows = json.loads(metadata.read_text())
    change(tmp_path / "set", rows)
    metadata.write_text(json.dumps(rows))
    cached = cache(metadata, pipe, tmp_path / "cache")
    assert (counting.images, counting.texts) == made
    assert same(cached.sample(2), EncodedSamples(make_data(metadata), pipe, make_conditions, OPTIONS).sample(2))


def test_options_models_conditions_and_transforms_make_other_entries(
    metadata: Path, pipe: Any, tmp_path: Path, counting: Counting
) -> None:
    cache(metadata, pipe, tmp_path / "cache")
    others: list[dict[str, Any]] = [
        {"model_hash": "other"},
        {"conditions": ["EntityRegions", {"scale": 2}]},
        {"options": EncodeOptions(text_length=8, posterior=True)},
        {"data": make_data(metadata, transform=Transform(resize="reference"))},
    ]
    for number, options in enumerate(others, 2):
        cache(metadata, pipe, tmp_path / "cache", **options)
        assert len(counting.images) == 4 * number
    texts = len(counting.texts)
    assert texts == 8
    bfloat16 = cache(metadata, pipe, tmp_path / "cache", options=EncodeOptions(text_length=8, dtype=torch.bfloat16))
    sample = bfloat16.sample(0)
    assert {each.dtype for each in (*sample.prompts[""], sample.conditions[0]["entity_0"])} == {torch.bfloat16}
    assert sample.latents.dtype == torch.float32


def in_process(work: Callable[..., None], *args: Any) -> int | None:
    """Runs work in a fork, and returns its exit code."""
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    process.join(60)
    return process.exitcode


def kill_self(done: int, total: int) -> None:
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_goes_on_where_it_stopped(metadata: Path, pipe: Any, tmp_path: Path, counting: Counting) -> None:
    folder = tmp_path / "cache"

    def killed() -> None:
        cache(metadata, pipe, folder, shard_bytes=1, on_progress=kill_self)

    assert in_process(killed) == -signal.SIGKILL
    for name, age in ((".half.tmp", 4000), (".new.tmp", 0)):
        (folder / name).mkdir()
        os.utime(folder / name, (time.time() - age,) * 2)
    with pytest.raises(FileNotFoundError, match="has no finished cache"):
        CachedSamples(folder)
    cached = cache(metadata, pipe, folder, shard_bytes=1)
    assert counting.images == ["metadata.json, entry 3"]
    assert counting.texts == ["dog 3"]
    encoded = EncodedSamples(make_data(metadata), pipe, make_conditions, OPTIONS)
    assert all(same(cached.sample(i), encoded.sample(i)) for i in range(4))
    # What was half written is removed, and what another run may be writing is not.
    assert [path.name for path in folder.glob(".*.tmp")] == [".new.tmp"]


def test_an_interrupted_write_leaves_no_half_file(
    metadata: Path, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers_flux_ext.checkpoints import writing

    def full(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        cache(metadata, pipe, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_cut_off_and_foreign_shards_are_made_again(
    metadata: Path, pipe: Any, tmp_path: Path, counting: Counting
) -> None:
    folder = tmp_path / "cache"
    cache(metadata, pipe, folder, shard_bytes=1)
    shards = sorted(folder.glob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-10])
    with pytest.raises(ValueError, match="is missing or was cut off"):
        CachedSamples(folder)
    before = len(counting.images) + len(counting.texts)
    cached = cache(metadata, pipe, folder, shard_bytes=1)
    assert len(counting.images) + len(counting.texts) == before + 1
    assert len(cached) == 4


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_share_the_work(metadata: Path, pipe: Any, tmp_path: Path, world_size: int) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(world_size)

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        cache(metadata, pipe, tmp_path / "many", rank=rank, world_size=world_size, wait=lambda: barrier.wait(60))

    processes = [context.Process(target=work, args=(rank,)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * world_size
    many, one = CachedSamples(tmp_path / "many"), cache(metadata, pipe, tmp_path / "one")
    assert len(many) == len(one) == 4
    assert all(same(many.sample(i), one.sample(i)) for i in range(4))
    assert not list((tmp_path / "many").glob("part-*"))


def test_an_error_in_one_process_stops_all(metadata: Path, pipe: Any, tmp_path: Path) -> None:
    data, folder = make_data(metadata), tmp_path / "cache"
    content = (tmp_path / "set" / "1.png").read_bytes()
    (tmp_path / "set" / "1.png").write_bytes(content[: len(content) // 2])
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)

    def share(rank: int) -> None:
        with pytest.raises(ValueError, match=r"entry 1: `1\.png` is truncated"):
            cache(metadata, pipe, folder, data, rank=rank, world_size=2, wait=lambda: barrier.wait(60))

    processes = [context.Process(target=share, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize("num_threads", [0, 3])
def test_threads_change_nothing(metadata: Path, pipe: Any, tmp_path: Path, num_threads: int) -> None:
    usual = cache(metadata, pipe, tmp_path / "usual")
    other = cache(metadata, pipe, tmp_path / "other", num_threads=num_threads)
    assert usual.files == other.files
    assert all(same(usual.sample(index), other.sample(index)) for index in range(4))


def test_a_pipeline_is_loaded_only_if_something_is_missing(metadata: Path, pipe: Any, tmp_path: Path) -> None:
    calls = []

    def load() -> Any:
        calls.append(1)
        return pipe

    cache(metadata, load, tmp_path / "cache")
    cache(metadata, load, tmp_path / "cache")
    assert len(calls) == 1
    with pytest.raises(ValueError, match="needs `model_hash`"):
        cache(metadata, load, tmp_path / "cache", model_hash=None)


def test_reading_needs_neither_models_nor_files(metadata: Path, pipe: Any, tmp_path: Path) -> None:
    cached = cache(metadata, pipe, tmp_path / "cache")
    sample = cached.sample(1)
    for path in (tmp_path / "set").iterdir():
        path.unlink()
    (tmp_path / "cache").rename(tmp_path / "moved")
    again = pickle.loads(pickle.dumps(CachedSamples(tmp_path / "moved")))
    assert same(again.sample(1), sample)
    assert set(again.sample(1, texts=["a cat"]).prompts) == {"a cat"}
    assert again.name(1) == "metadata.json, entry 1"
    with pytest.raises(IndexError, match="has 4 samples"):
        again.sample(4)


def test_no_pickle_and_no_path_of_the_machine_is_stored(metadata: Path, pipe: Any, tmp_path: Path) -> None:
    cache(metadata, pipe, tmp_path / "cache")
    for path in (tmp_path / "cache").iterdir():
        assert path.suffix in (".json", ".safetensors")
        assert str(tmp_path).encode() not in path.read_bytes()


def test_the_names_of_folders_are_not_stored(pipe: Any, tmp_path: Path) -> None:
    (tmp_path / "secret" / "set").mkdir(parents=True)
    noise(0).save(tmp_path / "secret" / "set" / "a.png")
    (tmp_path / "secret" / "set" / "a.txt").write_text("a cat")
    data = TrainingData([Entry(FolderSource(tmp_path / "secret" / "set"))], Draws(0))
    check_data(data)
    cached = cache_samples(data, pipe, lambda row: [], tmp_path / "cache", options=OPTIONS, model_hash="tiny")
    assert cached.name(0) == "set: a.png"
    assert all(b"secret" not in path.read_bytes() for path in (tmp_path / "cache").iterdir())


def test_what_a_column_is_for_counts(metadata: Path, pipe: Any, tmp_path: Path, counting: Counting) -> None:
    cache(metadata, pipe, tmp_path / "cache")
    weighted = make_data(metadata, columns=Columns(loss_mask="eligen_entity_masks"))
    assert cache(metadata, pipe, tmp_path / "cache", weighted).sample(0).mask is not None
    assert len(counting.images) == 8


def test_bad_samples_stop_or_are_left_out(metadata: Path, pipe: Any, tmp_path: Path) -> None:
    data = make_data(metadata)
    content = (tmp_path / "set" / "1.png").read_bytes()
    (tmp_path / "set" / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"entry 1: `1\.png` is truncated"):
        cache(metadata, pipe, tmp_path / "cache", data)
    cached = cache(metadata, pipe, tmp_path / "cache", data, bad=BadSamples("skip", 0.5))
    assert [cached.name(i)[-1] for i in range(len(cached))] == ["0", "2", "3"]
    assert [cached.sample(i).index for i in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="more than the share of 0.1"):
        cache(metadata, pipe, tmp_path / "cache", data, bad=BadSamples("skip", 0.1))


def test_errors_of_conditions_name_the_row(metadata: Path, pipe: Any) -> None:
    data = make_data(metadata)

    def wrong(row: Mapping[str, Any]) -> Any:
        return make_conditions({**row, "eligen_entity_masks": []})

    with pytest.raises(ValueError, match="metadata.json, entry 0: "):
        encode_sample(pipe, wrong, data.load(0), OPTIONS)


def test_files_without_a_sample_can_be_removed(metadata: Path, pipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache(metadata, pipe, folder, shard_bytes=1)
    change_image(tmp_path / "set", [])
    before = len(list(folder.glob("*.safetensors")))
    cached = cache(metadata, pipe, folder, shard_bytes=1)
    assert len(list(folder.glob("*.safetensors"))) == before + 1
    cached = cache(metadata, pipe, folder, shard_bytes=1, remove_stale=True)
    assert {path.name for path in folder.glob("*.safetensors")} == set(cached.files)
    assert len(cached.files) == before


def test_wrong_calls_are_refused(metadata: Path, pipe: Any, tmp_path: Path) -> None:
    data = make_data(metadata)
    with pytest.raises(ValueError, match=r"`rank` must be in \[0, 1\], got 2"):
        cache(metadata, pipe, tmp_path / "c", data, rank=2, world_size=2)
    with pytest.raises(ValueError, match="2 processes need `wait`"):
        cache(metadata, pipe, tmp_path / "c", data, world_size=2)
    data.items.clear()
    with pytest.raises(ValueError, match="Call `check_data` first"):
        cache(metadata, pipe, tmp_path / "c", data)
    with pytest.raises(ValueError, match="text_length"):
        EncodeOptions(text_length=0)
    with pytest.raises(ValueError, match="dtype"):
        EncodeOptions(dtype=torch.int8)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.just(b'{"version": 1}') | st.just(b"[]"))
def test_any_broken_manifest_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match="manifest|finished cache"):
        CachedSamples(folder)
