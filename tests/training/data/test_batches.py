"""The order of samples: whole, split and resumed runs see the same."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_flux_ext.training.data import BatchPlan, FreeBuckets, ListedBuckets, ReferenceSizes, Visit, batches
from diffusers_flux_ext.training.data.batches import describe_buckets
from diffusers_flux_ext.training.draws import Draws


KEYS = ["a"] * 7 + ["b"] * 4 + ["c"] + ["a"] * 3 + ["d"] * 2


def plan(**options: int) -> BatchPlan:
    return BatchPlan(KEYS, Draws(4), **options)


@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"batch_size": 2, "accumulation": 3}, {"batch_size": 3, "world_size": 2}]
)
def test_every_batch_has_one_bucket_and_no_visit_is_lost_or_repeated(options: dict[str, int]) -> None:
    made = plan(**options)
    updates = [update for epoch in range(6) for update in made.updates(epoch)]
    assert [update.number for update in updates] == list(range(len(updates)))
    for update in updates:
        assert len(update.batches) == made.world_size
        for batch in (batch for part in update.batches for batch in part):
            assert len(batch) == made.batch_size
            assert len({KEYS[visit.sample] for visit in batch}) == 1
    seen = Counter(visit for update in updates for visit in update.samples)
    assert set(seen.values()) == {1}
    missing = {Visit(i, e) for i in range(len(KEYS)) for e in range(6)} - seen.keys()
    assert Counter(KEYS[visit.sample] for visit in missing) == made.left_over(6)
    # What is carried over comes soon: not more than a group of each bucket and an update.
    assert len(missing) < made.total + 4 * made.same_shape


@pytest.mark.parametrize("same_shape", [2, 4])
def test_one_two_and_four_processes_see_the_same_samples_in_each_update(same_shape: int) -> None:
    ways = [
        {"batch_size": 4, "accumulation": 2}, {"batch_size": 2, "accumulation": 4},
        {"batch_size": 1, "accumulation": 8},
        {"batch_size": 2, "accumulation": 2, "world_size": 2}, {"batch_size": 1, "accumulation": 2, "world_size": 4},
        {"batch_size": 2, "world_size": 4},
    ]  # fmt: skip
    runs = [
        [plan(**way, same_shape=same_shape).updates(epoch) for epoch in range(4)]
        for way in ways
        if same_shape % way["batch_size"] == 0
    ]
    whole = [[update.samples for update in updates] for updates in runs[0]]
    assert sum(map(len, whole)) > 5
    for run in runs[1:]:
        assert [[update.samples for update in updates] for updates in run] == whole


def test_without_being_asked_runs_of_one_batch_size_are_the_same() -> None:
    whole, split = plan(batch_size=2, accumulation=2), plan(batch_size=2, world_size=2)
    assert [u.samples for u in whole.updates(0)] == [u.samples for u in split.updates(0)]


def test_a_resumed_run_goes_on_as_the_whole_one() -> None:
    made = plan(batch_size=2, accumulation=2)
    whole = [update for update, _ in zip(made.since(0), range(40))]
    for first in (0, 1, 3, 4, 17, 39):
        assert [
            update for update, _ in zip(plan(batch_size=2, accumulation=2).since(first), range(40 - first))
        ] == whole[first:]
        assert made.epoch_of(first) == whole[first].epoch


def test_small_buckets_are_carried_over_until_they_fill_a_batch() -> None:
    made = BatchPlan(["a"] * 4 + ["b"], Draws(0), batch_size=4)
    visits = [update.samples for epoch in range(8) for update in made.updates(epoch) if update.samples[0].sample == 4]
    assert visits == [[Visit(4, epoch) for epoch in range(4)], [Visit(4, epoch) for epoch in range(4, 8)]]


def test_updates_larger_than_the_data_gather_epochs() -> None:
    made = BatchPlan(["a"] * 3, Draws(0), accumulation=8)
    assert [len(made.updates(epoch)) for epoch in range(8)] == [0, 0, 1, 0, 0, 1, 0, 1]
    assert Counter(visit.sample for visit in made.updates(2)[0].samples).total() == 8
    assert made.epoch_of(1) == 5


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = [[visit.sample for update in plan().updates(epoch) for visit in update.samples] for epoch in range(3)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(len(KEYS)))
    assert orders[0] != orders[1] != orders[2]
    assert batches(KEYS, 2, Draws(4), 1) != batches(KEYS, 2, Draws(5), 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 4), st.integers(0, 50),
)  # fmt: skip
def test_any_plan_is_complete(keys: list[int], size: int, steps: int, world: int, epochs: int, seed: int) -> None:
    made = BatchPlan(keys, Draws(seed), batch_size=size, accumulation=steps, world_size=world)
    updates = [update for epoch in range(epochs) for update in made.updates(epoch)]
    assert [update.number for update in updates] == list(range(made.updates_before(epochs)))
    seen = Counter(visit for update in updates for visit in update.samples)
    assert all(count == 1 for count in seen.values())
    assert all(0 <= visit.epoch < epochs for visit in seen)
    assert len(seen) + sum(made.left_over(epochs).values()) == len(keys) * epochs


def test_counts_are_described() -> None:
    keys = [(32, 48, (8,))] * 3 + [(64, 64, (8,))]
    text = describe_buckets(BatchPlan(keys, Draws(0), batch_size=2), 3)
    assert "3 samples of 32 x 48 pixels" in text
    assert "4 samples in 2 buckets, 5 updates of 2 in 3 epochs; 2 visits are left over" in text


WRONG = [
    {"batch_size": 0},
    {"world_size": 0},
    {"accumulation": -1},
    {"batch_size": 2, "same_shape": 3},
    {"batch_size": 2, "accumulation": 3, "same_shape": 4},
]


@pytest.mark.parametrize("options", WRONG)
def test_wrong_numbers_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=list(options)[-1]):
        plan(**options)
    with pytest.raises(ValueError, match="no samples"):
        BatchPlan([], Draws(0))


class TestBuckets:
    def test_free_buckets_are_near_the_area_and_the_aspect(self) -> None:
        rule = FreeBuckets((512, 1024), step=64)
        for height, width in ((3000, 2000), (1100, 1100), (1300, 4000), (2000, 1999)):
            found = rule.sizes(height, width)
            assert len(found) == 2
            for (rows, columns), side in zip(found, (512, 1024)):
                assert rows % 64 == columns % 64 == 0
                assert 0.85 * side**2 <= rows * columns <= side**2
                assert abs(rows / columns - height / width) < 0.3 * height / width

    @pytest.mark.parametrize("side", [512, 768, 1024])
    def test_free_buckets_are_symmetric_and_of_every_aspect(self, side: int) -> None:
        (buckets,) = FreeBuckets((side,)).buckets
        assert {(width, height) for height, width in buckets} == set(buckets)
        assert (side, side) in buckets
        assert len({height for height, _ in buckets}) == len(buckets)
        aspects = sorted(height / width for height, width in buckets)
        assert max(second / first for first, second in zip(aspects, aspects[1:])) < 1.45

    def test_images_are_not_enlarged_unless_asked(self) -> None:
        rule = FreeBuckets((256, 512, 1024))
        assert rule.sizes(600, 600) == [(256, 256), (512, 512)]
        assert rule.sizes(100, 100) == [(256, 256)]
        assert FreeBuckets((256, 512, 1024), upscale=True).sizes(600, 600)[-1] == (1024, 1024)

    def test_long_images_take_the_longest_bucket(self) -> None:
        ((height, width),) = FreeBuckets((512,), max_aspect=2.0).sizes(500, 5000)
        assert width / height <= 2

    def test_listed_buckets_take_the_nearest_aspect_then_the_largest_reached(self) -> None:
        rule = ListedBuckets([(32, 48), (48, 32), (64, 96), (48, 48)])
        assert rule.sizes(70, 100) == [(64, 96)]
        assert rule.sizes(40, 60) == [(32, 48)]
        assert rule.sizes(10, 15) == [(32, 48)]
        assert rule.sizes(100, 98) == [(48, 48)]

    def test_reference_sizes_are_shrunk_and_floored(self) -> None:
        assert ReferenceSizes(10000).sizes(200, 100) == [(128, 64)]
        assert ReferenceSizes().sizes(99, 50) == [(96, 48)]
        with pytest.raises(ValueError, match="has less than 16 on a side"):
            ReferenceSizes().sizes(15, 50)

    @pytest.mark.parametrize("options", [{"resolutions": (32,)}, {"step": 20}, {"max_aspect": 0.5}])
    def test_wrong_rules_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"`{next(iter(options))}` of FreeBuckets"):
            FreeBuckets(**options)

    @pytest.mark.parametrize("listed", [[], [(30, 32)], [(32,)]])
    def test_wrong_lists_are_refused(self, listed: list[Any]) -> None:
        with pytest.raises(ValueError, match="`listed` of ListedBuckets"):
            ListedBuckets(listed)


def test_processes_work_on_one_shape_at_a_time_where_they_can() -> None:
    made = BatchPlan(["a", "b"] * 8, Draws(0), accumulation=4, world_size=2)
    for update in made.updates(0):
        shapes = [[batch[0].sample % 2 for batch in step] for step in zip(*update.batches)]
        assert sum(first != second for first, second in shapes) <= 1
