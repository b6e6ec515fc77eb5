"""Exact regional attention without a mask.

Tokens whose rows of the attention rules are equal form a *class*. Sorting the tokens so that classes are contiguous
lets every class run ordinary, unmasked attention against exactly the keys it may see: the result equals masked
attention, any attention kernel can run it, and only the visible pairs are computed.

Rules are never expanded to a table over all pairs of tokens. Tokens of a group that no rule tells apart are first
merged into an *atom*; classes are found on the small table over atoms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..sequence import AttentionRule, JointLayout, ResolvedRule, resolve_rules


AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Run = tuple[int, int]

# Costs in units of one query-key pair. A masked kernel is slower per pair than an unmasked one; a class costs some
# kernel launches, which weigh as much as the pairs that the device computes in that time; gathered tokens are copied.
MASKED_PAIR_COST = 1.3
COPIED_TOKEN_COST = 32
CLASS_COST = {"cpu": 2**10}
CLASS_COST_ACCELERATOR = 2**19


@dataclass(frozen=True)
class AttentionClass:
    """Query tokens that see the same keys, as runs `(start, stop)` of positions in plan order."""

    query_runs: tuple[Run, ...]
    key_runs: tuple[Run, ...]

    @property
    def cost(self) -> int:
        """Computed pairs and copied tokens, in pairs."""
        queries, keys = (sum(stop - start for start, stop in runs) for runs in (self.query_runs, self.key_runs))
        copied = (len(self.query_runs) > 1) * queries + (len(self.key_runs) > 1) * 2 * keys
        return queries * keys + COPIED_TOKEN_COST * copied


@dataclass(frozen=True)
class AttentionPlan:
    """How to execute a set of attention rules.

    Exactly one of three forms: `classes` for one batch-wide list of classes, with `text_order` and `image_order`
    saying how the tokens must be sorted first; `samples` for classes of each sample, sorted inside each attention; or
    a dense boolean `mask`.

    Args:
        classes (`tuple[AttentionClass, ...]`): Classes over the sorted joint sequence.
        image_classes (`tuple[AttentionClass, ...]`): The same without text queries, whose output is then zero.
        text_order (`torch.Tensor` of shape `(text_length,)`, *optional*): Source position of each text token.
        image_order (`torch.Tensor` of shape `(image_length,)`, *optional*): Source position of each image token.
        samples (`tuple`, *optional*):
            Per sample, the source positions `(length,)`, their inverse, and the classes.
        mask (`torch.Tensor` of shape `(batch_size or 1, 1, length, length)`, *optional*): Who sees whom.
        num_unrotated (`int`): How many leading tokens have zero rotary positions, so that rotating them is void.
        table (`torch.Tensor` of shape `(runs, 4)`, *optional*):
            `classes` as rows `(class, 1 for keys, start, stop)` on the CPU, for compiled blocks: as data, regions can
            change without another compilation.
        image_table (`torch.Tensor` of shape `(runs, 4)`, *optional*): `image_classes` in that form.
        sample_tables (`tuple[torch.Tensor, ...]`): The classes of each of `samples` in that form.
    """

    classes: tuple[AttentionClass, ...] = ()
    image_classes: tuple[AttentionClass, ...] = ()
    text_order: torch.Tensor | None = None
    image_order: torch.Tensor | None = None
    samples: tuple[tuple[torch.Tensor, torch.Tensor, tuple[AttentionClass, ...]], ...] = ()
    mask: torch.Tensor | None = None
    num_unrotated: int = 0
    table: torch.Tensor | None = None
    image_table: torch.Tensor | None = None
    sample_tables: tuple[torch.Tensor, ...] = ()

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention: AttentionFunction,
        image_only: bool = False,
    ) -> torch.Tensor:
        """Run `attention` over the visible pairs only; needs a plan without `mask`.

        Args:
            query, key, value (`torch.Tensor` of shape `(batch_size, length, heads, head_dim)`):
                The joint sequence, already sorted by `text_order` and `image_order`.
            attention (`Callable`): Unmasked attention on tensors of that layout.
            image_only (`bool`, defaults to `False`):
                Whether the text tokens' outputs are not needed: they are zero then.

        Returns:
            `torch.Tensor` of shape `(batch_size, length, heads, head_dim)`; zeros for a token that sees nothing.
        """
        if not self.samples:
            classes = self.image_classes if image_only else self.classes
            return _attend(classes, query, key, value, attention)

        def run(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return _attend(self.samples[index][2], query, key, value, attention)

        return self._each_sample(run, query, key, value)

    def attend_samples(
        self, attention: Callable[..., torch.Tensor], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Run `samples` by their tables, as compiled blocks do.

        Args:
            attention (`Callable`): Takes query, key and value of a sample, sorted, and its table.
            query, key, value (`torch.Tensor` of shape `(batch_size, length, heads, head_dim)`): The joint sequence.

        Returns:
            `torch.Tensor` of shape `(batch_size, length, heads, head_dim)`
        """
        return self._each_sample(lambda index, *each: attention(*each, self.sample_tables[index]), query, key, value)

    def _each_sample(self, run: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        outputs = []
        for index, sample in enumerate(self.samples):
            order, restore = sample[0], sample[1]
            taken = (tensor[index : index + 1].index_select(1, order) for tensor in tensors)
            outputs.append(run(index, *taken).index_select(1, restore))
        return torch.cat(outputs)


def build_attention_plan(
    layout: JointLayout,
    rules: Sequence[AttentionRule],
    device: torch.device | str = "cpu",
    classes_supported: bool = True,
    mask_supported: bool = True,
    text_is_unrotated: bool = False,
) -> AttentionPlan | None:
    """Turn attention rules into the cheapest way to execute them.

    Args:
        layout (`JointLayout`): The groups in joint order.
        rules (`Sequence[AttentionRule]`): The rules of all conditions.
        device (`torch.device` or `str`): Where the plan's tensors go; also decides what a class costs.
        classes_supported (`bool`, defaults to `True`): Whether every attention processor can execute classes.
        mask_supported (`bool`, defaults to `True`): Whether the attention kernel accepts a dense mask.
        text_is_unrotated (`bool`, defaults to `False`): Whether all text tokens have zero rotary positions.

    Returns:
        `AttentionPlan`, or `None` when the rules leave everything visible.

    Raises:
        ValueError: if a rule names no group, does not fit its groups, or if neither form is supported.
    """
    resolved = resolve_rules(layout, rules)
    if not resolved:
        return None
    if not (classes_supported or mask_supported):
        raise ValueError(
            "Attention rules need either `FluxRegionalAttnProcessor` on every block or an attention backend that "
            "accepts a mask, and this transformer has neither. Set the backend to 'native', or unload the adapter "
            "that replaced the attention processors."
        )
    if not classes_supported:
        return AttentionPlan(mask=_dense_mask(layout, resolved).to(device))
    num_samples = max(rule.allow.shape[0] for rule in resolved)
    samples = [_sort_into_classes(layout, resolved, index) for index in range(num_samples)]
    if mask_supported and _masking_is_cheaper(layout, samples, torch.device(device)):
        return AttentionPlan(mask=_dense_mask(layout, resolved).to(device))
    if num_samples > 1:
        return AttentionPlan(
            samples=tuple((order.to(device), order.argsort().to(device), classes) for order, classes in samples),
            sample_tables=tuple(_to_table(classes) for _, classes in samples),
        )
    order, classes = samples[0]
    text, image = order.split([layout.num_text_tokens, layout.total - layout.num_text_tokens])
    image_classes = _without_text_queries(classes, len(text))
    return AttentionPlan(
        classes,
        image_classes,
        _order_or_none(text, device),
        _order_or_none(image - len(text), device),
        num_unrotated=len(text) if text_is_unrotated else 0,
        table=_to_table(classes),
        image_table=_to_table(image_classes),
    )


def attend_table(
    table: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: AttentionFunction
) -> torch.Tensor:
    """Run [`AttentionPlan.attend`] for classes in the form of a table.

    Args:
        table (`torch.Tensor` of shape `(runs, 4)`): Rows `(class, 1 for keys, start, stop)`.
        query, key, value (`torch.Tensor` of shape `(batch_size, length, heads, head_dim)`): The sorted sequence.
        attention (`Callable`): Unmasked attention on tensors of that layout.

    Returns:
        `torch.Tensor` of shape `(batch_size, length, heads, head_dim)`
    """
    runs: dict[int, tuple[list[Run], list[Run]]] = {}
    for index, is_key, start, stop in table.tolist():
        runs.setdefault(index, ([], []))[is_key].append((start, stop))
    classes = [AttentionClass(tuple(queries), tuple(keys)) for queries, keys in runs.values()]
    return _attend(classes, query, key, value, attention)


def _to_table(classes: Sequence[AttentionClass]) -> torch.Tensor:
    rows = [
        (index, is_key, start, stop)
        for index, part in enumerate(classes)
        for is_key, runs in enumerate((part.query_runs, part.key_runs))
        for start, stop in runs
    ]
    return torch.tensor(rows)


def _without_text_queries(classes: Sequence[AttentionClass], text: int) -> tuple[AttentionClass, ...]:
    clipped = [
        AttentionClass(
            tuple((max(start, text), stop) for start, stop in part.query_runs if stop > text), part.key_runs
        )
        for part in classes
    ]
    return (AttentionClass(((0, text),), ()), *(part for part in clipped if part.query_runs))


def _order_or_none(order: torch.Tensor, device: torch.device | str) -> torch.Tensor | None:
    return None if torch.equal(order, torch.arange(len(order))) else order.to(device)


def _sort_into_classes(
    layout: JointLayout, rules: Sequence[ResolvedRule], sample: int
) -> tuple[torch.Tensor, tuple[AttentionClass, ...]]:
    groups = [_find_atoms(layout, rules, group, sample) for group in range(len(layout.names))]
    visible = _atom_visibility(layout, rules, [first for _, first in groups], sample)
    runs, order, position, atom = [], [], 0, 0
    for (labels, first), offset in zip(groups, layout.offsets):
        # Atoms that see the least go first: those are the ones that share their class with the text beside them.
        ranks = visible[atom : atom + len(first)].sum(1).argsort(stable=True).argsort(stable=True)
        order.append(offset + ranks[labels].argsort(stable=True))
        sizes = torch.bincount(labels, minlength=len(first))[ranks.argsort()].tolist()
        ends = [position + sum(sizes[: index + 1]) for index in range(len(sizes))]
        sorted_runs = list(zip([position, *ends[:-1]], ends))
        runs += [sorted_runs[rank] for rank in ranks.tolist()]
        position, atom = ends[-1], atom + len(first)
    return torch.cat(order), _classes(visible, runs)


def _find_atoms(
    layout: JointLayout, rules: Sequence[ResolvedRule], group: int, sample: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the atom of each token of a group, and the first token of each atom."""
    columns = []
    for rule in rules:
        table = rule.sample(sample)
        if rule.query == group and table.shape[0] > 1:
            columns.append(_row_labels(table))
        if rule.key == group and table.shape[1] > 1:
            columns.append(_row_labels(table.T))
    length = layout.lengths[group]
    if not columns:
        return torch.zeros(length, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    labels = torch.stack(columns, dim=1).unique(dim=0, return_inverse=True)[1]
    first = torch.full((int(labels.max()) + 1,), length).scatter_reduce(0, labels, torch.arange(length), "amin")
    return labels, first


def _row_labels(table: torch.Tensor) -> torch.Tensor:
    return table[:, 0].long() if table.shape[1] == 1 else table.unique(dim=0, return_inverse=True)[1]


def _atom_visibility(
    layout: JointLayout, rules: Sequence[ResolvedRule], firsts: Sequence[torch.Tensor], sample: int
) -> torch.Tensor:
    """Return boolean table `(atoms, atoms)`: which atoms each atom sees."""
    starts = [sum(len(first) for first in firsts[:group]) for group in range(len(firsts))]
    total = sum(len(first) for first in firsts)
    visible = torch.ones(total, total, dtype=torch.bool)
    for rule in rules:
        rows, columns = firsts[rule.query], firsts[rule.key]
        table = rule.sample(sample).expand(layout.lengths[rule.query], layout.lengths[rule.key])
        block = visible[starts[rule.query] :][: len(rows), starts[rule.key] :][:, : len(columns)]
        block &= table[rows][:, columns]
    return visible


def _classes(visible: torch.Tensor, runs: Sequence[Run]) -> tuple[AttentionClass, ...]:
    members: dict[tuple[bool, ...], list[int]] = {}
    for atom, row in enumerate(visible.tolist()):
        members.setdefault(tuple(row), []).append(atom)
    return tuple(
        AttentionClass(
            _merge_runs([runs[atom] for atom in atoms]), _merge_runs([run for run, seen in zip(runs, row) if seen])
        )
        for row, atoms in members.items()
    )


def _merge_runs(runs: Sequence[Run]) -> tuple[Run, ...]:
    merged: list[Run] = []
    for start, stop in sorted(runs):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _masking_is_cheaper(
    layout: JointLayout, samples: Sequence[tuple[torch.Tensor, tuple[AttentionClass, ...]]], device: torch.device
) -> bool:
    class_cost = CLASS_COST.get(device.type, CLASS_COST_ACCELERATOR)
    repeats = layout.batch_size if len(samples) == 1 else 1
    pairs = sum(part.cost * repeats for _, classes in samples for part in classes)
    copied = 8 * layout.total * COPIED_TOKEN_COST * len(samples) if len(samples) > 1 else 0
    planned = pairs + copied + class_cost * sum(len(classes) for _, classes in samples)
    return layout.batch_size * layout.total**2 * MASKED_PAIR_COST < planned


def _dense_mask(layout: JointLayout, rules: Sequence[ResolvedRule]) -> torch.Tensor:
    num_samples = max(rule.allow.shape[0] for rule in rules)
    mask = torch.ones(num_samples, 1, layout.total, layout.total, dtype=torch.bool)
    for rule in rules:
        rows, columns = layout.offsets[rule.query], layout.offsets[rule.key]
        block = mask[:, 0, rows : rows + layout.lengths[rule.query], columns : columns + layout.lengths[rule.key]]
        block &= rule.allow
    return mask


def _attend(
    classes: Sequence[AttentionClass],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention: AttentionFunction,
) -> torch.Tensor:
    pieces: dict[int, torch.Tensor] = {}
    for part in classes:
        queries = _take(query, part.query_runs)
        if part.key_runs:
            output = attention(queries, _take(key, part.key_runs), _take(value, part.key_runs))
        else:
            output = torch.zeros_like(queries)
        sizes = [stop - start for start, stop in part.query_runs]
        pieces.update(zip([start for start, _ in part.query_runs], output.split(sizes, dim=1)))
    return torch.cat([pieces[start] for start in sorted(pieces)], dim=1)


def _take(tensor: torch.Tensor, runs: Sequence[Run]) -> torch.Tensor:
    parts = [tensor[:, start:stop] for start, stop in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
