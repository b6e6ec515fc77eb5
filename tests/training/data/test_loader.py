"""Loading batches ahead: any number of workers gives the same."""

import pickle
from typing import Any

import pytest
import torch

from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline
from diffusers_flux_ext.training.data import (
    BatchPlan,
    CachedSamples,
    Captions,
    EncodedSamples,
    SampleBatch,
    SampleLoader,
    Transform,
    Visit,
    cache_samples,
    stack_samples,
)
from diffusers_flux_ext.training.data.loader import Fetching
from diffusers_flux_ext.training.draws import Draws
from tests.fixtures.training_data import OPTIONS, make_conditions, make_data, write_rows


CAPTIONS = Captions(dropout=0.3)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("loader")
    transform = Transform(crop="random", brightness=0.2)
    data = make_data(write_rows(root / "set", 6), transform=transform, variants=2, captions=CAPTIONS)
    pipe = tiny_pipeline(FluxConditionedPipeline)
    cached = cache_samples(data, pipe, make_conditions, root / "cache", options=OPTIONS)
    encoded = EncodedSamples(data, pipe, make_conditions, OPTIONS)
    return {"cached": cached, "encoded": encoded, "conditions": make_conditions(data.load(0).row)}


def loader(samples: dict[str, Any], kind: str, world_size: int = 1, **options: Any) -> SampleLoader:
    source, draws = samples[kind], Draws(5)
    plan = BatchPlan(
        [source.key(i) for i in range(len(source))], draws, batch_size=1, accumulation=4 // world_size,
        world_size=world_size, same_shape=2,
    )  # fmt: skip
    return SampleLoader(source, plan, samples["conditions"], draws, CAPTIONS, **options)


def flat(batch: SampleBatch) -> list[Any]:
    tensors = [batch.latents, batch.prompt_embeds, batch.pooled_prompt_embeds, batch.weight, batch.preserved]
    return [*tensors, *(value for each in batch.conditions for _, value in sorted(each.items()))]


def everything(loading: SampleLoader, first: int = 0, last: int = 4) -> list[tuple[int, list[SampleBatch]]]:
    return [(update.number, list(batches)) for update, batches in loading.updates(first, last)]


def same(one: list[tuple[int, list[SampleBatch]]], other: list[tuple[int, list[SampleBatch]]]) -> bool:
    pairs = [
        (a, b) for (_, left), (_, right) in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    ]
    return all(
        a.visits == b.visits and a.texts == b.texts and all(map(torch.equal, flat(a), flat(b))) for a, b in pairs
    )


@pytest.mark.parametrize("kind", ["cached", "encoded"])
def test_no_and_four_workers_give_the_same(samples: dict[str, Any], kind: str) -> None:
    whole = everything(loader(samples, kind))
    assert [number for number, _ in whole] == [0, 1, 2, 3]
    assert len({text for _, batches in whole for batch in batches for text in batch.texts}) > 2
    assert same(whole, everything(loader(samples, kind, num_workers=4, start_method="fork")))


def test_cached_and_uncached_batches_are_equal(samples: dict[str, Any]) -> None:
    # Their buckets are other objects, in the same order.
    assert same(everything(loader(samples, "cached")), everything(loader(samples, "encoded")))


def test_a_resumed_loader_goes_on_as_the_whole_one(samples: dict[str, Any]) -> None:
    assert same(everything(loader(samples, "cached"))[2:], everything(loader(samples, "cached"), 2))


def test_processes_load_together_what_one_loads(samples: dict[str, Any]) -> None:
    whole = everything(loader(samples, "cached"))
    halves = [everything(loader(samples, "cached", 2, rank=rank)) for rank in range(2)]
    for (_, batches), *parts in zip(whole, *halves):
        together = [batch.visits for pair in zip(*(part for _, part in parts)) for batch in pair]
        assert together == [batch.visits for batch in batches]


@pytest.mark.slow
def test_workers_can_be_spawned(samples: dict[str, Any]) -> None:
    whole = everything(loader(samples, "cached"), 0, 2)
    assert same(whole, everything(loader(samples, "cached", num_workers=1, start_method="spawn"), 0, 2))


@pytest.mark.parametrize("kind", ["cached", "encoded"])
def test_what_workers_get_can_be_pickled(samples: dict[str, Any], kind: str) -> None:
    fetching = Fetching(samples[kind], Draws(5), CAPTIONS)
    copied = pickle.loads(pickle.dumps(fetching))
    assert copied[(Visit(3, 1),)][1] == fetching[(Visit(3, 1),)][1]


def test_captions_are_chosen_by_sample_and_epoch(samples: dict[str, Any]) -> None:
    source, batches = samples["cached"], [batch for _, each in everything(loader(samples, "cached")) for batch in each]
    for batch in batches:
        (visit,), (text,) = batch.visits, batch.texts
        assert text == CAPTIONS.choose(source.texts(visit.sample), Draws(5), *visit)
        assert torch.equal(batch.prompt_embeds, source.sample(visit.sample, texts=[text]).prompts[text][0])
    assert len({batch.texts for batch in batches}) > 3


def test_a_cache_is_loaded_without_models(samples: dict[str, Any]) -> None:
    alone = {**samples, "cached": CachedSamples(samples["cached"].folder)}
    batch = everything(loader(alone, "cached"), 0, 1)[0][1][0]
    assert batch.latents.shape == (1, 6, 64)
    assert batch.indices.tolist() == [visit.sample for visit in batch.visits]


def test_samples_of_several_sizes_are_refused(samples: dict[str, Any]) -> None:
    pair = [samples["cached"].sample(index) for index in (0, 1)]
    with pytest.raises(ValueError, match="have several sizes"):
        stack_samples(pair, (), ["", ""], samples["conditions"])


def test_wrong_numbers_are_refused(samples: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`rank`"):
        loader(samples, "cached", rank=1)
    with pytest.raises(ValueError, match="`num_workers`"):
        loader(samples, "cached", num_workers=-1)
