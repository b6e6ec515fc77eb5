"""Which layers a LoRA updates, and how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from ...lora.keys import Component
from .names import linear_layers, matches, select
from .presets import LORA_PRESETS


Kind = Literal["lora", "dora", "lokr"]
_LARGEST_RANK = 2**14


@dataclass(frozen=True)
class LoRAOptions:
    """Which layers of a model get an adapter, and of which size.

    Patterns are those of [`select`]: whole names, names of what contains layers, globs, ranges of blocks
    (`transformer_blocks.0-5`), or `re:` and a regular expression. One that matches nothing is an error.

    Args:
        targets (`str` or `Sequence[str]`, defaults to `"attention+mlp"`):
            The name of a preset (`"attention"`, `"attention+mlp"`, `"reference"`, `"all-linear"`), or patterns and
            presets.
        exclude (`Sequence[str]`, defaults to `()`): Patterns of targets that are left out.
        blocks (`Sequence[str]`, defaults to `()`): Only targets in these, for example `["transformer_blocks.0-5"]`.
        rank (`int`, defaults to 16): Rank.
        alpha (`float`, *optional*): The update is scaled by `alpha / rank`. The layer's rank by default.
        ranks (`Mapping[str, int]`, *optional*): Ranks by pattern; the first that matches a layer counts.
        alphas (`Mapping[str, float]`, *optional*): Alphas by pattern.
        kind (`"lora"`, `"dora"` or `"lokr"`, defaults to `"lora"`):
            LoRA ([paper](https://huggingface.co/papers/2106.09685)), DoRA
            ([paper](https://huggingface.co/papers/2402.09353)) or LoKr
            ([paper](https://huggingface.co/papers/2309.14859)).
        rank_stabilized (`bool`, defaults to `False`):
            Scale by `alpha / sqrt(rank)` ([paper](https://huggingface.co/papers/2312.03732)).
        tied (`bool`, defaults to `False`):
            One `down` for queries, keys and values (and the MLP of single blocks), as DiffSynth-Studio trains; see
            [`tie`]. Files with fused layers then have the rank itself instead of its multiple.
        dropout (`float`, defaults to 0.0): Share of a layer's inputs that is dropped before `down`, in [0, 1).
        bias (`bool`, defaults to `False`): Also train a bias of `up`.
        init (`"uniform"` or `"gaussian"`, defaults to `"uniform"`):
            How `down` begins: uniform in `1 / sqrt(in_features)`, or normal of deviation `1 / rank`. `up` is zero.
        factor (`int`, defaults to -1): LoKr's size of the first factor; -1 makes both about as large.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if a number is out of range, or arguments exclude each other.
    """

    targets: str | Sequence[str] = "attention+mlp"
    exclude: Sequence[str] = ()
    blocks: Sequence[str] = ()
    rank: int = 16
    alpha: float | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "lora"
    rank_stabilized: bool = False
    tied: bool = False
    dropout: float = 0.0
    bias: bool = False
    init: Literal["uniform", "gaussian"] = "uniform"
    factor: int = -1

    def __post_init__(self) -> None:
        for name, ranks in {"rank": [self.rank], "ranks": self.ranks.values()}.items():
            if not all(type(rank) is int and 0 < rank <= _LARGEST_RANK for rank in ranks):
                raise ValueError(f"`{name}` has {list(ranks)}; expected whole numbers from 1 to {_LARGEST_RANK}.")
        given = [] if self.alpha is None else [self.alpha]
        for name, alphas in {"alpha": given, "alphas": self.alphas.values()}.items():
            if not all(_is_number(alpha) and alpha > 0 for alpha in alphas):
                raise ValueError(f"`{name}` has {list(alphas)}; expected positive numbers.")
        if self.kind not in get_args(Kind):
            raise ValueError(f"`kind` is {self.kind!r}; expected one of {list(get_args(Kind))}.")
        if self.init not in ("uniform", "gaussian"):
            raise ValueError(f"`init` is {self.init!r}; expected 'uniform' or 'gaussian'.")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` is {self.dropout!r}; expected a number in [0, 1).")
        if type(self.factor) is not int or (self.factor != -1 and self.factor < 1):
            raise ValueError(f"`factor` is {self.factor!r}; expected a positive whole number, or -1.")
        self._check_kind()

    def _check_kind(self) -> None:
        excluded = {
            "lora": {"factor": self.factor != -1},
            "dora": {"bias": self.bias, "factor": self.factor != -1},
            "lokr": {
                "tied": self.tied,
                "bias": self.bias,
                "dropout": self.dropout > 0,
                "rank_stabilized": self.rank_stabilized,
                "init": self.init != "uniform",
            },
        }
        wrong = [name for name, given in excluded[self.kind].items() if given]
        if wrong:
            raise ValueError(f"`kind` {self.kind!r} has no {wrong}. Leave that out, or choose another kind.")

    def layers(self, model: nn.Module, component: Component = "transformer") -> dict[str, tuple[int, float]]:
        """Return the layers of a model that get an adapter.

        Args:
            model (`torch.nn.Module`): The model.
            component (`str`, defaults to `"transformer"`): Which it is: `"text_encoder"` is CLIP, `"text_encoder_2"`
                T5.

        Returns:
            `dict[str, tuple[int, float]]`: rank and alpha by name, in the model's order.

        Raises:
            ValueError: if a pattern matches nothing, or nothing is left; the message names the nearest layers.
        """
        presets, of = LORA_PRESETS[component], f"Linear of {type(model).__name__}"
        names = list(linear_layers(model))
        targets = [self.targets] if isinstance(self.targets, str) else list(self.targets)
        patterns = [target for target in targets if target not in presets]
        chosen = set(select(names, patterns, "targets", f"{of} and is none of the presets {list(presets)}"))
        for preset in (presets[target] for target in targets if target in presets):
            chosen.update(name for name in names if any(matches(name, pattern) for pattern in preset))
        kept = [name for name in names if name in chosen]
        if self.blocks:
            inside = set(select(names, self.blocks, "blocks", of))
            kept = [name for name in kept if name in inside]
        dropped = set(select(kept, self.exclude, "exclude", f"target among the {of}"))
        kept = [name for name in kept if name not in dropped]
        if not kept:
            raise ValueError(
                f"`targets` {self.targets!r} with `blocks` {list(self.blocks)} and `exclude` {list(self.exclude)} "
                f"leave no {of}."
            )
        ranks = self._by_pattern("ranks", self.ranks, kept)
        alphas = self._by_pattern("alphas", self.alphas, kept)
        found = {name: ranks.get(name, self.rank) for name in kept}
        return {
            name: (rank, float(alphas.get(name, rank if self.alpha is None else self.alpha)))
            for name, rank in found.items()
        }

    @staticmethod
    def _by_pattern(argument: str, table: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for pattern, value in table.items():
            for name in select(names, [pattern], argument, "target"):
                found.setdefault(name, value)
        return found

    def facts(self, sizes: Iterable[tuple[int, float]]) -> dict[str, Any]:
        """Return what a file's header says of the adapter.

        Args:
            sizes (`Iterable[tuple[int, float]]`): Rank and alpha of each layer.

        Returns:
            `dict[str, Any]`
        """
        ranks, alphas = (sorted(set(values)) for values in zip(*sizes))
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        return {
            "kind": self.kind,
            "rank": ", ".join(f"{rank:g}" for rank in ranks),
            "alpha": ", ".join(f"{alpha:g}" for alpha in alphas),
            "targets": targets,
            "blocks": ", ".join(self.blocks) or None,
            "excluded": ", ".join(self.exclude) or None,
            "rank_stabilized": str(self.rank_stabilized) if self.rank_stabilized else None,
            "tied": str(self.tied) if self.tied else None,
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
