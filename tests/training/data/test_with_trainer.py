"""From the example data to trained weights: cached, uncached, whole, split and resumed runs are one run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusers_flux_ext import EntityRegions, FluxCondition, FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline, tiny_transformer
from diffusers_flux_ext.training import FluxTraining, bare_condition
from diffusers_flux_ext.training.assemble import BatchMaker
from diffusers_flux_ext.training.checkpoint import CheckpointFolder
from diffusers_flux_ext.training.data import (
    BatchPlan,
    Captions,
    EncodedSamples,
    EncodeOptions,
    Entry,
    ListedBuckets,
    SampleLoader,
    TableSource,
    TrainingData,
    Transform,
    cache_samples,
    check_data,
    write_example_data,
)
from diffusers_flux_ext.training.draws import Draws
from diffusers_flux_ext.training.run.samples import LoadedUpdates
from diffusers_flux_ext.training.run.trainer import RunSettings, Trainer
from diffusers_flux_ext.training.trained import add_lora


OPTIONS, CAPTIONS = EncodeOptions(text_length=32), Captions(dropout=0.3)


def make_conditions(row: Mapping[str, Any]) -> Sequence[FluxCondition]:
    return [EntityRegions(row["eligen_entity_prompts"], row["eligen_entity_masks"])]


def levels(draws: Draws, update: int, positions: Sequence[int], total: int, num_tokens: int) -> torch.Tensor:
    return torch.stack([draws.uniform("level", update, each) for each in positions]).float()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("run")
    columns = ("image", "eligen_entity_masks")
    source = TableSource(write_example_data(root / "set", 6), file_columns=columns)
    data = TrainingData(
        [Entry(source)], Draws(0), ListedBuckets([(32, 32)]), Transform(crop="random", brightness=0.1), CAPTIONS,
        needed=("eligen_entity_prompts", "eligen_entity_masks"),
    )  # fmt: skip
    check_data(data)
    pipe = tiny_pipeline(FluxConditionedPipeline)
    cached = cache_samples(data, pipe, make_conditions, root / "cache", options=OPTIONS)
    return {"cached": cached, "uncached": EncodedSamples(data, pipe, make_conditions, OPTIONS)}


def run(samples: Any, folder: Path, count: int = 4, **sizes: int) -> dict[str, torch.Tensor]:
    transformer = tiny_transformer(0)
    trained = add_lora(transformer)
    conditions, draws = [bare_condition(EntityRegions)], Draws(7)
    keys = [samples.key(index) for index in range(len(samples))]
    loader = SampleLoader(samples, BatchPlan(keys, draws, same_shape=2, **sizes), conditions, draws, CAPTIONS)
    trainer = Trainer(
        FluxTraining(transformer, conditions), trained,
        [torch.optim.SGD(trained.named_parameters().values(), lr=1.0)], LoadedUpdates(loader, count),
        BatchMaker(draws, levels, torch.float32), RunSettings(count, save_every=2),
        CheckpointFolder(folder), {},
    )  # fmt: skip
    trainer.resume()
    assert trainer.run()
    return {name: value.detach().clone() for name, value in trained.named_parameters().items()}


@pytest.fixture(scope="module")
def whole(samples: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return run(samples["cached"], tmp_path_factory.mktemp("whole"), batch_size=2, accumulation=2)


def test_an_uncached_run_is_the_cached_one(samples: dict[str, Any], whole: Any, tmp_path: Path) -> None:
    other = run(samples["uncached"], tmp_path, batch_size=2, accumulation=2)
    assert all(torch.equal(value, other[name]) for name, value in whole.items())


def test_a_resumed_run_is_the_whole_one(samples: dict[str, Any], whole: Any, tmp_path: Path) -> None:
    half = run(samples["cached"], tmp_path, 2, batch_size=2, accumulation=2)
    assert not all(torch.equal(value, half[name]) for name, value in whole.items())
    other = run(samples["cached"], tmp_path, batch_size=2, accumulation=2)
    assert all(torch.equal(value, other[name]) for name, value in whole.items())


def test_batches_of_another_size_train_the_same(samples: dict[str, Any], whole: Any, tmp_path: Path) -> None:
    other = run(samples["cached"], tmp_path, batch_size=1, accumulation=4)
    assert all(torch.allclose(value, other[name], atol=1e-6) for name, value in whole.items())
