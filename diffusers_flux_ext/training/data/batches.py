"""The order of samples: a pure function from their buckets, the seed and the epoch to the batches of each process."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache

from ..draws import Draws
from .visits import Batch, Update, Visit


class BatchPlan:
    """All updates of a run, each computed when it is asked for.

    Samples of a bucket come in a new random order in each epoch. They are cut into groups of `same_shape` samples,
    and what is left over opens the bucket's next epoch: nothing is dropped or repeated. The groups of an epoch, in
    random order, make up updates, in which groups of one bucket stand side by side; left-over groups open the next
    epoch, too. So the samples of an update depend on their total and on `same_shape` alone, and not on how many
    processes share them or how many batches they come in.

    Args:
        keys (`Sequence[Hashable]`): The bucket of each sample.
        draws (`Draws`): The run's draws.
        batch_size (`int`, defaults to 1): Samples of a batch, which share a bucket.
        accumulation (`int`, defaults to 1): Batches of a process in an update.
        world_size (`int`, defaults to 1): Processes.
        same_shape (`int`, *optional*):
            Samples of an update that share a bucket, a multiple of `batch_size` that divides the update; by default
            `batch_size`. Give the same number to runs with different batch sizes that are to be compared.

    Raises:
        ValueError: if a number is out of range, or there are no samples.
    """

    def __init__(
        self,
        keys: Sequence[Hashable],
        draws: Draws,
        *,
        batch_size: int = 1,
        accumulation: int = 1,
        world_size: int = 1,
        same_shape: int | None = None,
    ) -> None:
        if not keys:
            raise ValueError("There are no samples to make batches of.")
        numbers = {"batch_size": batch_size, "accumulation": accumulation, "world_size": world_size}
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"`{name}` must be at least 1, got {number}.")
        self.draws, self.batch_size, self.accumulation, self.world_size = draws, batch_size, accumulation, world_size
        self.total = batch_size * accumulation * world_size
        self.same_shape = batch_size if same_shape is None else same_shape
        if self.same_shape < 1 or self.same_shape % batch_size or self.total % self.same_shape:
            raise ValueError(
                f"`same_shape` must be a multiple of the {batch_size} samples of a batch and divide the {self.total} "
                f"of an update, got {self.same_shape}."
            )
        self._members: dict[Hashable, list[int]] = {}
        for index, key in enumerate(keys):
            self._members.setdefault(key, []).append(index)
        numbers_of = {key: number for number, key in enumerate(self._members)}
        self._bucket_of = [numbers_of[key] for key in keys]
        # Groups of a few epochs are asked for again and again.
        self._groups_of = lru_cache(maxsize=4)(self._draw_groups)

    @property
    def counts(self) -> dict[Hashable, int]:
        """The number of samples of each bucket, the largest first."""
        return dict(Counter({key: len(members) for key, members in self._members.items()}).most_common())

    def updates_before(self, epoch: int) -> int:
        """Return how many updates come before an epoch."""
        return self._groups_before(epoch) * self.same_shape // self.total

    def epoch_of(self, number: int) -> int:
        """Return the epoch that an update belongs to.

        Args:
            number (`int`): The update's number, from 0.

        Returns:
            `int`
        """
        low, high = 0, 1
        while self.updates_before(high) <= number:
            low, high = high, 2 * high
        return low + bisect_right(range(low + 1, high + 1), number, key=self.updates_before)

    def updates(self, epoch: int) -> list[Update]:
        """Return the updates of an epoch.

        Args:
            epoch (`int`): From 0.

        Returns:
            `list[Update]`: as many as its samples, and what the epoch before left over, fill; none is possible.
        """
        first, last = self.updates_before(epoch), self.updates_before(epoch + 1)
        per_update = self.total // self.same_shape
        groups = self._groups_since(first * per_update, epoch)
        return [
            self._update(first + place, epoch, groups[place * per_update : (place + 1) * per_update])
            for place in range(last - first)
        ]

    def since(self, number: int) -> Iterator[Update]:
        """Yield updates without end.

        Args:
            number (`int`): The first one's number: how many are done.

        Yields:
            `Update`
        """
        epoch = self.epoch_of(number)
        skipped = number - self.updates_before(epoch)
        while True:
            yield from self.updates(epoch)[skipped:]
            epoch, skipped = epoch + 1, 0

    def left_over(self, epochs: int) -> dict[Hashable, int]:
        """Return how many visits of each bucket are left when a run ends after some epochs.

        Args:
            epochs (`int`): The number of epochs.

        Returns:
            `dict[Hashable, int]`: buckets with left-over visits.
        """
        rest: Counter[Hashable] = Counter()
        for key, members in self._members.items():
            rest[key] = epochs * len(members) % self.same_shape
        keys = list(self._members)
        used = self.updates_before(epochs) * (self.total // self.same_shape)
        for group in self._groups_since(used, epochs - 1):
            rest[keys[self._bucket_of[group[0].sample]]] += len(group)
        return {key: count for key, count in rest.items() if count}

    def _groups_before(self, epoch: int) -> int:
        return sum(epoch * len(members) // self.same_shape for members in self._members.values())

    def _groups_since(self, start: int, epoch: int) -> list[Batch]:
        """Return the groups from one number on to the end of an epoch."""
        first = epoch
        while first > 0 and self._groups_before(first) > start:
            first -= 1
        groups = [group for each in range(first, epoch + 1) for group in self._groups_of(each)]
        return groups[start - self._groups_before(first) :]

    def _draw_groups(self, epoch: int) -> list[Batch]:
        groups: list[Batch] = []
        for bucket, members in enumerate(self._members.values()):
            size = self.same_shape
            first, last = (each * len(members) // size for each in (epoch, epoch + 1))
            orders: dict[int, list[int]] = {}
            for group in range(first, last):
                places = [divmod(place, len(members)) for place in range(group * size, (group + 1) * size)]
                for turn, _ in places:
                    if turn not in orders:
                        orders[turn] = self.draws.permutation("data/order", turn, bucket, length=len(members))
                groups.append(tuple(Visit(members[orders[turn][place]], turn) for turn, place in places))
        order = self.draws.permutation("data/groups", epoch, length=len(groups))
        return [groups[place] for place in order]

    def _update(self, number: int, epoch: int, groups: Sequence[Batch]) -> Update:
        # Processes that wait for each other had better work on the same shape.
        ordered = sorted(groups, key=lambda group: self._bucket_of[group[0].sample])
        visits = [visit for group in ordered for visit in group]
        batches = [tuple(visits[at : at + self.batch_size]) for at in range(0, self.total, self.batch_size)]
        return Update(number, epoch, tuple(tuple(batches[rank :: self.world_size]) for rank in range(self.world_size)))


def batches(
    keys: Sequence[Hashable],
    batch_size: int,
    draws: Draws,
    epoch: int,
    world_size: int = 1,
    accumulation: int = 1,
    same_shape: int | None = None,
) -> list[Update]:
    """Return the updates of an epoch; see [`BatchPlan`], whose arguments and errors these are.

    Returns:
        `list[Update]`
    """
    plan = BatchPlan(
        keys, draws, batch_size=batch_size, accumulation=accumulation, world_size=world_size, same_shape=same_shape
    )
    return plan.updates(epoch)


def describe_buckets(plan: BatchPlan, epochs: int) -> str:
    """Describe buckets before the start: samples of each, updates, and what a run of some epochs leaves over.

    Args:
        plan (`BatchPlan`): The plan.
        epochs (`int`): Epochs of the run.

    Returns:
        `str`: several lines.
    """
    lines = [f"{count:6d} samples of {_key_name(key)}" for key, count in plan.counts.items()]
    rest = sum(plan.left_over(epochs).values())
    lines.append(
        f"{sum(plan.counts.values()):6d} samples in {len(plan.counts)} buckets, {plan.updates_before(epochs)} updates "
        f"of {plan.total} in {epochs} epochs; {rest} visits are left over at the end."
    )
    return "\n".join(lines)


def _key_name(key: Hashable) -> str:
    if isinstance(key, tuple) and len(key) > 1 and all(isinstance(side, int) for side in key[:2]):
        return f"{key[0]} x {key[1]} pixels" + (f", {key[2:]}" if len(key) > 2 else "")
    return str(key)
