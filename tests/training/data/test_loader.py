"""Loading batches ahead: any number of workers gives the same."""

import pickle
from typing import Any

import pytest
import torch

from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import tiny_pipeline
from diffusers_flux_ext.training.assemble import BatchMaker, Place
from diffusers_flux_ext.training.batch import TrainingBatch
from diffusers_flux_ext.training.data import (
    BatchPlan,
    CachedSamples,
    Captions,
    EncodedSamples,
    LoadedUpdates,
    Transform,
    Visit,
    cache_samples,
)
from diffusers_flux_ext.training.data.loader import Fetching
from diffusers_flux_ext.training.draws import Draws
from tests.fixtures.training_data import OPTIONS, make_conditions, make_data, write_rows


CAPTIONS = Captions(dropout=0.3)


def levels(draws: Draws, update: int, positions: Any, total: int, num_tokens: int) -> torch.Tensor:
    return torch.tensor([(position + 0.5) / total for position in positions])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("loader")
    transform = Transform(crop="random", brightness=0.2)
    data = make_data(write_rows(root / "set", 6), transform=transform, variants=2, captions=CAPTIONS)
    pipe = tiny_pipeline(FluxConditionedPipeline)
    cached = cache_samples(data, pipe, make_conditions, root / "cache", options=OPTIONS)
    encoded = EncodedSamples(data, pipe, make_conditions, OPTIONS)
    make_batch = BatchMaker(make_conditions(data.load(0).row), Draws(5), levels, torch.float32)
    return {"cached": cached, "encoded": encoded, "make_batch": make_batch}


def loaded(samples: dict[str, Any], kind: str, world_size: int = 1, **options: Any) -> LoadedUpdates:
    source, draws = samples[kind], Draws(5)
    plan = BatchPlan(
        [source.key(i) for i in range(len(source))], draws, batch_size=1, accumulation=4 // world_size,
        world_size=world_size, same_shape=2,
    )  # fmt: skip
    return LoadedUpdates(source, plan, draws, CAPTIONS, **options)


def everything(
    samples: dict[str, Any], updates: LoadedUpdates, first: int = 0, last: int = 4
) -> list[list[tuple[Place, TrainingBatch]]]:
    make = samples["make_batch"]
    return [[(place, make(each, place)) for each, place in updates.batches(number)] for number in range(first, last)]


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = [(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)]
    return all(a[0] == b[0] and all(map(torch.equal, flat(a[1]), flat(b[1]))) for a, b in pairs)


def flat(batch: TrainingBatch) -> list[Any]:
    tensors = [
        batch.latents,
        batch.noise,
        batch.prompt_embeds,
        batch.pooled_prompt_embeds,
        batch.weight,
        batch.indices,
    ]
    return [*tensors, *(value for each in batch.conditions for _, value in sorted(each.items()))]


@pytest.mark.parametrize("kind", ["cached", "encoded"])
def test_no_and_four_workers_give_the_same(samples: dict[str, Any], kind: str) -> None:
    whole = everything(samples, loaded(samples, kind))
    assert same(whole, everything(samples, loaded(samples, kind, num_workers=4, start_method="fork")))


def test_cached_and_uncached_batches_are_equal(samples: dict[str, Any]) -> None:
    # Their buckets are other objects, in the same order.
    assert same(*(everything(samples, loaded(samples, kind)) for kind in ("cached", "encoded")))


def test_captions_are_chosen_by_sample_and_epoch(samples: dict[str, Any]) -> None:
    updates, source = loaded(samples, "cached"), samples["cached"]
    chosen = []
    for number in range(6):
        planned = updates.plan.updates(updates.plan.epoch_of(number))
        visits = next(update for update in planned if update.number == number).samples
        for (each, _), visit in zip(updates.batches(number), visits):
            text = CAPTIONS.choose(source.texts(visit.sample), Draws(5), *visit)
            assert list(each[0].prompts) == list(dict.fromkeys([text, ""]))
            chosen.append(text)
    assert len(set(chosen)) > 3


def test_places_cover_an_update(samples: dict[str, Any]) -> None:
    for world_size in (1, 2, 4):
        places = [
            place
            for rank in range(world_size)
            for _, place in loaded(samples, "cached", world_size, rank=rank).batches(2)
        ]
        assert sorted(position for place in places for position in place.positions) == [0, 1, 2, 3]
        assert {(place.update, place.total) for place in places} == {(2, 4)}


def test_a_resumed_or_repeated_update_is_the_same(samples: dict[str, Any]) -> None:
    updates = loaded(samples, "cached")
    whole = everything(samples, updates)
    assert same(whole[2:], everything(samples, loaded(samples, "cached"), 2))
    assert same(whole[1:2], everything(samples, updates, 1, 2))
    # Broken off after its first batch.
    next(iter(updates.batches(2)))
    assert same(whole[2:3], everything(samples, updates, 2, 3))


def test_processes_load_together_what_one_loads(samples: dict[str, Any]) -> None:
    whole = everything(samples, loaded(samples, "cached"))
    halves = [everything(samples, loaded(samples, "cached", 2, rank=rank)) for rank in range(2)]
    together = [sorted((*one, *other), key=lambda each: each[0].positions) for one, other in zip(*halves)]
    assert same(whole, together)


@pytest.mark.slow
def test_workers_can_be_spawned(samples: dict[str, Any]) -> None:
    whole = everything(samples, loaded(samples, "cached"), 0, 2)
    assert same(whole, everything(samples, loaded(samples, "cached", num_workers=1, start_method="spawn"), 0, 2))


@pytest.mark.parametrize("kind", ["cached", "encoded"])
def test_what_workers_get_can_be_pickled(samples: dict[str, Any], kind: str) -> None:
    fetching = Fetching(samples[kind], Draws(5), CAPTIONS)
    copied = pickle.loads(pickle.dumps(fetching))
    assert copied[(Visit(3, 1),)][1] == fetching[(Visit(3, 1),)][1]


def test_a_cache_is_loaded_without_models(samples: dict[str, Any]) -> None:
    alone = {**samples, "cached": CachedSamples(samples["cached"].folder)}
    assert everything(samples, loaded(alone, "cached"), 0, 1)[0][0][1].latents.shape == (1, 6, 64)


def test_wrong_numbers_are_refused(samples: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`rank`"):
        loaded(samples, "cached", rank=1)
    with pytest.raises(ValueError, match="`num_workers`"):
        loaded(samples, "cached", num_workers=-1)
