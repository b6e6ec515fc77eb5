"""Token groups and the rules of attention between them: what a condition may add to the joint sequence.

The joint sequence is `[text groups..., prompt | target, reference groups...]`; everything before the bar goes through
the transformer's text embedder, everything after it through its image embedder.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch


@dataclass(frozen=True)
class TokenGroup:
    """A named run of tokens.

    Args:
        name (`str`):
            Unique name, for example `"entity_0"`, `"prompt"`, `"target"` or `"reference_0"`.
        hidden_states (`torch.Tensor` of shape `(batch_size or 1, length, channels)`):
            The tokens before the transformer's embedders: text 4096 wide, image 64 wide in the released models.
        ids (`torch.Tensor` of shape `(length, 3)`):
            Rotary positions `(t, y, x)`.
        in_prompt (`bool` or `torch.Tensor` of shape `(batch_size or 1, length or 1)`, defaults to `False`):
            Whether these text tokens are part of the prompt, for all or for each token: ControlNets, and whatever
            else sees the whole prompt, see them beside it. Text that a rule hides from the prompt is not part of it.
    """

    name: str
    hidden_states: torch.Tensor
    ids: torch.Tensor
    in_prompt: bool | torch.Tensor = False

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.hidden_states.shape[1]


@dataclass(frozen=True)
class AttentionRule:
    """`query` tokens see `key` tokens only where `allow`. Rules are AND-ed, so their order never matters.

    Args:
        query (`str`):
            Name of the group that attends, or a glob over the names. A glob that contains a slash is matched against
            `kind/name` with the kinds `text`, `target` and `reference`: `"text/*"` is every text group. A glob never
            matches a group against itself, and it may match nothing.
        key (`str`):
            Name of the group that is attended to, or a glob.
        allow (`bool` or `torch.Tensor`):
            Boolean tensor broadcastable to `(batch_size, query_length, key_length)`.
    """

    query: str
    key: str
    allow: bool | torch.Tensor


@dataclass(frozen=True)
class Contribution:
    """What one condition adds to one call of the transformer. Additive only: nothing overwrites another contribution.

    Args:
        text (`Sequence[TokenGroup]`): Text groups, placed before the prompt.
        reference (`Sequence[TokenGroup]`): Image groups, placed after the target.
        channels (`Sequence[torch.Tensor]`, each `(batch_size, target_length, C)`): Concatenated after the latents.
        rules (`Sequence[AttentionRule]`): Which tokens see which.
        block_residuals (`Sequence[torch.Tensor]`, each `(batch_size, target_length, inner_dim)`):
            Added after the double blocks; spread over them when there are fewer than blocks, summed over conditions.
        single_block_residuals (`Sequence[torch.Tensor]`): The same for the single blocks.
        residuals_repeat (`bool`):
            The residuals of the double blocks take turns (block i gets residual i modulo their number, as XLabs'
            ControlNets) instead of serving runs of neighbouring blocks.
        attention_kwargs (`Mapping[str, Any]`):
            Passed to the attention processors. Tuples of one name are joined; anything else can be given once.
    """

    text: Sequence[TokenGroup] = ()
    reference: Sequence[TokenGroup] = ()
    channels: Sequence[torch.Tensor] = ()
    rules: Sequence[AttentionRule] = ()
    block_residuals: Sequence[torch.Tensor] = ()
    single_block_residuals: Sequence[torch.Tensor] = ()
    residuals_repeat: bool = False
    attention_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JointLayout:
    """Names, kinds and lengths of the groups in joint order.

    Args:
        names (`tuple[str, ...]`): Group names in joint order.
        kinds (`tuple[str, ...]`): `"text"`, `"target"` or `"reference"` for each group.
        lengths (`tuple[int, ...]`): Tokens of each group.
        batch_size (`int`): Number of samples.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    lengths: tuple[int, ...]
    batch_size: int

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(
                f"Token groups need unique names, but {twice} are given more than once. Two conditions of one kind "
                f"cannot run together: join them into one, for example all entities into one `EntityRegions`. The "
                f"groups are {list(self.names)}."
            )

    @property
    def total(self) -> int:
        """Length of the joint sequence."""
        return sum(self.lengths)

    @property
    def num_text_tokens(self) -> int:
        """Length of the text part, which comes first."""
        return sum(length for length, kind in zip(self.lengths, self.kinds) if kind == "text")

    @property
    def offsets(self) -> tuple[int, ...]:
        """First position of each group."""
        return tuple(sum(self.lengths[:index]) for index in range(len(self.lengths)))

    def select(self, pattern: str) -> list[int]:
        """Return the indices of the groups that `pattern` names; raise a `ValueError` for an unknown plain name."""
        if not is_glob(pattern):
            if pattern not in self.names:
                raise ValueError(
                    f"An attention rule names the group {pattern!r}, which does not exist. This call has the groups "
                    f"{list(self.names)}; use a glob such as 'reference_*' for groups that may be absent."
                )
            return [self.names.index(pattern)]
        labels = [f"{kind}/{name}" if "/" in pattern else name for kind, name in zip(self.kinds, self.names)]
        return [index for index, label in enumerate(labels) if fnmatchcase(label, pattern)]


@dataclass(frozen=True)
class ResolvedRule:
    """A rule between two groups; `allow` is a boolean tensor `(1 or batch, 1 or query, 1 or key)` on the CPU."""

    query: int
    key: int
    allow: torch.Tensor

    def sample(self, index: int) -> torch.Tensor:
        """Return the `(query, key)` table of one sample."""
        return self.allow[min(index, self.allow.shape[0] - 1)]


def padding_rules(name: str, mask: torch.Tensor) -> list[AttentionRule]:
    """Return rules that isolate the padding of a text group: only padding sees padding, and it sees nothing else.

    Padding still sees itself, since a token that sees nothing becomes NaN in some attention kernels.

    Args:
        name (`str`): The text group.
        mask (`torch.Tensor` of shape `(batch_size or 1, length)`): Boolean, false for padding.

    Returns:
        `list[AttentionRule]`
    """
    query, key = mask[:, :, None], mask[:, None, :]
    return [AttentionRule(name, "*", query), AttentionRule("*", name, key), AttentionRule(name, name, query == key)]


def is_glob(pattern: str) -> bool:
    """Whether `pattern` is a glob rather than a plain group name."""
    return any(character in pattern for character in "*?[")


def resolve_rules(layout: JointLayout, rules: Sequence[AttentionRule]) -> list[ResolvedRule]:
    """Match the rules' names and check their tables against the groups' lengths.

    Args:
        layout (`JointLayout`): The groups.
        rules (`Sequence[AttentionRule]`): The rules of all conditions.

    Returns:
        `list[ResolvedRule]`: one entry per rule and pair of groups; tables that allow everything are left out.

    Raises:
        ValueError: if a plain name matches no group, or a table does not broadcast to its groups' lengths.
    """
    resolved = []
    for rule in rules:
        for query, key in _pairs(layout, rule):
            allow = _table(layout, rule, query, key)
            if not bool(allow.all()):
                resolved.append(ResolvedRule(query, key, allow))
    return resolved


def _pairs(layout: JointLayout, rule: AttentionRule) -> Iterator[tuple[int, int]]:
    globbed = is_glob(rule.query) or is_glob(rule.key)
    queries, keys = layout.select(rule.query), layout.select(rule.key)
    return ((query, key) for query in queries for key in keys if not (globbed and query == key))


def _table(layout: JointLayout, rule: AttentionRule, query: int, key: int) -> torch.Tensor:
    allow = torch.as_tensor(rule.allow)
    full = (layout.batch_size, layout.lengths[query], layout.lengths[key])
    shape = (1,) * (3 - allow.ndim) + tuple(allow.shape)
    fits = len(shape) == 3 and all(size in (1, wanted) for size, wanted in zip(shape, full))
    if allow.dtype != torch.bool or not fits:
        raise ValueError(
            f"The attention rule {rule.query!r} -> {rule.key!r} has a table of shape {tuple(allow.shape)} and dtype "
            f"{allow.dtype}, but between {layout.names[query]!r} and {layout.names[key]!r} it must be boolean and "
            f"broadcast to (batch_size, query_length, key_length) = {full}."
        )
    allow = allow.detach().to("cpu").reshape(shape)
    same_for_all = allow.shape[0] > 1 and bool((allow == allow[:1]).all())
    return allow[:1] if same_for_all else allow


def rename_groups(contribution: Contribution, suffix: str) -> Contribution:
    """Give a contribution's groups a suffix, so that two conditions of one class can run together.

    Args:
        contribution (`Contribution`): Its rules follow where they name its own groups; globs stay.
        suffix (`str`): What is appended to each name.

    Returns:
        `Contribution`
    """
    own = {group.name for group in (*contribution.text, *contribution.reference)}
    if not own:
        return contribution
    names = {name: name + suffix for name in own}
    return replace(
        contribution,
        text=[replace(group, name=names[group.name]) for group in contribution.text],
        reference=[replace(group, name=names[group.name]) for group in contribution.reference],
        rules=[
            replace(rule, query=names.get(rule.query, rule.query), key=names.get(rule.key, rule.key))
            for rule in contribution.rules
        ],
    )
