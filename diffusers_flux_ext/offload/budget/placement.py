"""Choose what stays on the card, what streams and what goes to disk."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from .plan import ComponentPlan, PhasePlan, host_bytes


LOOP = "loop"
# Models below this size come whole: a few copies of blocks would save nothing.
SMALL = 2**29


@dataclass(frozen=True)
class Need:
    """What a model needs, as input of the placement.

    Attributes:
        name (`str`), kind (`str`), phase (`str`): As in [`ComponentPlan`].
        rest (`int`): Bytes outside the blocks.
        blocks (`Mapping[str, int]`): Bytes of the blocks, in the order they run.
        leaves (`Sequence[int]`): Bytes of the layers.
        activations (`int`): Peak bytes of activations, the copy of a stored layer in its computing type included.
        held (`int`): Bytes that it leaves on the card for the rest of the phase.
        assumed (`bool`): Whether `activations` are assumed.
        storage_dtype (`torch.dtype`, *optional*): Data type that the blocks are stored in.
        from_disk (`bool`): Whether blocks are read from files, which needs whole blocks and buffers for them.
    """

    name: str
    kind: str
    phase: str
    rest: int
    blocks: Mapping[str, int]
    leaves: Sequence[int]
    activations: int
    held: int = 0
    assumed: bool = False
    storage_dtype: torch.dtype | None = None
    from_disk: bool = False

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return self.rest + sum(self.blocks.values())


def place(needs: Sequence[Need], available: int) -> tuple[list[ComponentPlan], list[str]]:
    """Place the weights of all models.

    Args:
        needs (`Sequence[Need]`): The models, in the order they run.
        available (`int`): Bytes that may be taken.

    Returns:
        `tuple[list[ComponentPlan], list[str]]`: The places, and the phases that do not fit.
    """
    loop = [need for need in needs if need.phase == LOOP]
    placed = {plan.name: plan for plan in _place_loop(loop, available)}
    fits_loop = all(plan.level == "whole" for plan in placed.values())
    spare = available - phase_bytes(placed.values(), loop) if fits_loop else 0
    for need in sorted((need for need in needs if need.phase != LOOP), key=lambda need: -need.total):
        if need.total <= spare and need.total + need.activations <= available:
            placed[need.name] = _whole(need)
            spare -= need.total
        else:
            placed[need.name] = _place_one(need, available)
    plans = [placed[need.name] for need in needs]
    by_name = {need.name: need for need in needs}
    failed = [
        phase
        for phase, members in by_phase(plans)
        if phase_bytes(members, [by_name[plan.name] for plan in members]) > available
    ]
    return plans, failed


def by_phase(plans: Sequence[ComponentPlan]) -> Iterator[tuple[str, list[ComponentPlan]]]:
    """Group models by phase, in order."""
    for phase in dict.fromkeys(plan.phase for plan in plans):
        yield phase, [plan for plan in plans if plan.phase == phase]


def phase_bytes(plans: Collection[ComponentPlan], needs: Sequence[Need]) -> int:
    """Count the peak bytes of a phase, without what other phases leave on the card."""
    weights = sum(plan.held for plan in plans)
    running = max((plan.window + plan.activations for plan in plans), default=0)
    return weights + running + sum(need.held for need in needs)


def phase_plans(plans: Sequence[ComponentPlan], needs: Sequence[Need], available: int) -> list[PhasePlan]:
    """Plan what each phase takes and what of other phases may stay: the loop's parts first, then the largest.

    Args:
        plans (`Sequence[ComponentPlan]`): The places.
        needs (`Sequence[Need]`): The models.
        available (`int`): Bytes that may be taken.

    Returns:
        `list[PhasePlan]`
    """
    found = []
    order = sorted(plans, key=lambda plan: (plan.phase != LOOP, -plan.held))
    for phase, members in by_phase(plans):
        held = sum(need.held for need in needs if need.phase == phase)
        running = max(members, key=lambda plan: plan.window + plan.activations)
        weights = sum(plan.held for plan in members) + running.window
        activations = running.activations + held
        room, keeps = available - weights - activations, {}
        for plan in (plan for plan in order if plan.phase != phase and plan.level != "leaves"):
            for name, size in ({"": plan.rest} | plan.resident).items():
                if size <= room:
                    keeps[plan.name, name] = size
                    room -= size
        found.append(PhasePlan(phase, weights, activations, frozenset(keeps), sum(keeps.values())))
    return found


def mark_staying(plans: Sequence[ComponentPlan], phases: Sequence[PhasePlan]) -> list[ComponentPlan]:
    """Mark the models that no phase evicts: they need no copy in host memory."""
    marked = []
    for plan in plans:
        others = [phase for phase in phases if phase.name != plan.phase]
        parts = [(plan.name, name) for name in ("", *plan.resident)]
        stays = plan.level == "whole" and all(part in phase.keeps for phase in others for part in parts)
        marked.append(replace(plan, stays=stays))
    return marked


def send_to_disk(plans: Sequence[ComponentPlan], ram_budget: int) -> tuple[list[ComponentPlan], int]:
    """Move blocks from host memory to disk until the rest fits, starting with those that are read least often.

    Args:
        plans (`Sequence[ComponentPlan]`): The places.
        ram_budget (`int`): Bytes of host memory for weights.

    Returns:
        `tuple[list[ComponentPlan], int]`: The places, and the bytes that still exceed the budget.
    """
    changed = {plan.name: plan for plan in plans}

    def excess() -> int:
        return host_bytes(changed.values()) - ram_budget

    candidates = [plan for plan in plans if not plan.stays and plan.level != "leaves"]
    once = sorted((plan for plan in candidates if plan.phase != LOOP), key=lambda plan: -plan.total)
    loop = [plan for plan in candidates if plan.phase == LOOP]
    steps = [(plan.name, [*plan.resident, *plan.streamed]) for plan in once]
    steps += [(plan.name, [block]) for plan in loop for block in plan.resident]
    # Spread, so that the disk goes on reading while blocks in host memory are copied.
    for plan in loop:
        names = list(plan.streamed)
        steps += [(plan.name, [names[index]]) for index in _spread(len(names))]
    for name, blocks in steps:
        if excess() <= 0:
            break
        if not blocks:
            continue
        changed[name] = replace(changed[name], on_disk=changed[name].on_disk | set(blocks))
    return [changed[plan.name] for plan in plans], max(0, excess())


def smallest_phases(needs: Sequence[Need]) -> dict[str, int]:
    """Return the minimum bytes that each phase needs."""
    found: dict[str, int] = {}
    for phase in dict.fromkeys(need.phase for need in needs):
        members = [need for need in needs if need.phase == phase]
        running = max(_smallest_window(need) + need.activations for need in members)
        found[phase] = running + sum(need.held + need.rest * need.from_disk for need in members)
    return found


def _smallest_window(need: Need) -> int:
    return max(need.blocks.values(), default=0) if need.from_disk else _leaf_window(need, prefetch=False)


def _leaf_window(need: Need, prefetch: bool) -> int:
    """Count the bytes of a layer and, with prefetch, the next one; at most all of them."""
    return min(need.total, (1 + prefetch) * max(need.leaves, default=0))


def _whole(need: Need) -> ComponentPlan:
    return _plan(need, "whole", set(need.blocks), prefetch=False)


def _plan(need: Need, level: str, resident: set[str], prefetch: bool) -> ComponentPlan:
    staying = {name: size for name, size in need.blocks.items() if name in resident}
    streamed = {name: size for name, size in need.blocks.items() if name not in resident}
    window = _leaf_window(need, prefetch) if level == "leaves" else _window(need, list(streamed.values()), prefetch)
    return ComponentPlan(
        name=need.name,
        kind=need.kind,
        phase=need.phase,
        level=level,  # type: ignore[arg-type]
        rest=need.rest,
        resident=staying,
        streamed=streamed,
        prefetch=prefetch,
        activations=need.activations,
        assumed=need.assumed,
        window=window,
        storage_dtype=need.storage_dtype,
        from_disk=need.from_disk,
    )


def _window(need: Need, sizes: list[int], prefetch: bool) -> int:
    """Count the most bytes of streamed blocks at once: a block and, with prefetch, the next one."""
    if not prefetch or len(sizes) < 2:
        return max(sizes, default=0)
    if need.from_disk:
        # Buffers of one size, which are used again.
        return 2 * max(sizes)
    return max(one + other for one, other in zip(sizes, sizes[1:]))


def _ways(need: Need) -> Iterator[ComponentPlan]:
    """Return the ways to run a model without resident blocks, fastest first."""
    if len(need.blocks) > 1:
        yield _plan(need, "blocks", set(), prefetch=True)
    if need.blocks:
        yield _plan(need, "blocks", set(), prefetch=False)
    if need.from_disk:
        return
    for prefetch in (True, False):
        if need.total > _leaf_window(need, prefetch):
            yield _plan(need, "leaves", set(), prefetch)
        else:
            yield _whole(need)


def _place_one(need: Need, available: int) -> ComponentPlan:
    """Place a model that runs once: whole if it is small, otherwise block by block, which copies no more."""
    ways = [*([_whole(need)] if need.total <= SMALL or len(need.blocks) < 2 else []), *_ways(need)]
    return next((way for way in ways if phase_bytes([way], [need]) <= available), ways[-1])


def _place_loop(needs: Sequence[Need], available: int) -> list[ComponentPlan]:
    """Place models that run in turn, many times: as many blocks as fit stay."""
    order = _order(needs)
    for prefetch in (True, False):
        for count in range(len(order), -1, -1):
            resident = set(order[:count])
            plans = [
                _whole(need)
                if count == len(order)
                else _plan(need, "blocks", {name for owner, name in resident if owner == need.name}, prefetch)
                for need in needs
            ]
            plans = [replace(plan, level="whole", prefetch=False) if not plan.streamed else plan for plan in plans]
            if phase_bytes(plans, needs) <= available:
                return plans
    ways = [list(_ways(need)) for need in needs]
    depth = max(map(len, ways), default=0)
    plans = []
    for level in range(depth):
        plans = [way[min(level, len(way) - 1)] for way in ways]
        if phase_bytes(plans, needs) <= available:
            return plans
    return plans


def _order(needs: Sequence[Need]) -> list[tuple[str, str]]:
    """Sort blocks by priority for a place on the card.

    Large blocks first: a double block holds twice the weights of a single one for the same computing, so copying it
    is hardest to hide, and the window for streaming is as large as the largest block that streams. Blocks of one size
    are taken evenly from all depths, so that there is computing between two copies.
    """
    sizes = {(need.name, name): size for need in needs for name, size in need.blocks.items()}
    ordered: list[tuple[str, str]] = []
    for size in sorted(set(sizes.values()), reverse=True):
        same = [key for key, each in sizes.items() if each == size]
        ordered += [same[index] for index in _spread(len(same))]
    return ordered


def _spread(count: int) -> list[int]:
    """Return the indices below `count`, from 0 on, ordered so that every prefix is spread evenly."""
    bits = max(1, (count - 1).bit_length())
    reversed_bits = (int(format(number, f"0{bits}b")[::-1], 2) for number in range(2**bits))
    return [index for index in reversed_bits if index < count]
