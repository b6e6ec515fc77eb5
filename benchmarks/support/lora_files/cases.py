"""What a generated file holds: its modules, ranks, scales, storage, and the parts beside the transformer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from benchmarks.support.lora_files.formats import KOHYA, KOHYA_TWIN, TABLE, XLABS, Format, Spelling
from benchmarks.support.lora_files.layouts import is_projection
from benchmarks.support.lora_files.sizes import Sizes


Keep = Callable[[str], bool]


def in_blocks(module: str) -> bool:
    """Everything but embedders and the final layer."""
    return "transformer_blocks." in module


def anywhere(module: str) -> bool:
    """Every module."""
    return True


def _single(module: str) -> bool:
    return module.startswith("single_")


def _named(*parts: str) -> Keep:
    return lambda module: in_blocks(module) and module.endswith(parts)


def _final(module: str) -> bool:
    return module in ("norm_out.linear", "proj_out")


def _attention(module: str) -> bool:
    return ".attn." in module


def _some_blocks(module: str) -> bool:
    return module.startswith(("transformer_blocks.1.", "single_transformer_blocks.0."))


def _by_part(index: int, module: str) -> int:
    ranks = {"to_q": 2, "to_k": 4, "to_v": 5, "add_q_proj": 5, "add_k_proj": 2, "add_v_proj": 4, "proj_mlp": 3}
    return ranks.get(module.rpartition(".")[2], 4)


def _growing(index: int, module: str) -> int:
    return 1 + index % 5


def _constant(rank: int) -> Callable[[int, str], int]:
    return lambda index, module: rank


@dataclass(frozen=True)
class Case:
    """Differences from the default file; `needs` must be among what a format offers."""

    needs: frozenset[str] = frozenset()
    keep: Keep = in_blocks
    rank: Callable[[int, str], int] = _constant(4)
    # alpha / rank of the module at `index`; None leaves the alpha out.
    ratio: Callable[[int, str], float | None] = lambda index, module: 1.0
    alpha_dtype: torch.dtype = torch.float32
    alpha_shape: tuple[int, ...] = ()
    dtype: torch.dtype | None = None
    encoders: tuple[str, ...] = ()
    transformer: bool = True
    sizes: Sizes = field(default_factory=Sizes)
    shuffled: bool = False
    shared_down: bool = False
    blocks: bool = False
    twin: str = ""
    rslora: bool = False
    patterns: tuple[dict[str, int], dict[str, float]] | None = None
    extras: str = ""
    # Fields of the format's row or of its spelling that the file spells otherwise.
    row: dict[str, Any] = field(default_factory=dict)
    spelling: dict[str, Any] = field(default_factory=dict)


def _case(*needs: str, **fields: Any) -> Case:
    return Case(needs=frozenset(needs), **fields)


def _ratio(value: float) -> Callable[[int, str], float]:
    return lambda index, module: value


def _every(step: int, value: float | None, other: float | None) -> Callable[[int, str], float | None]:
    return lambda index, module: value if index % step == 0 else other


COVERAGE = {
    "default": _case(),
    "shuffled": _case(shuffled=True),
    "rank_1": _case("ranks", rank=_constant(1)),
    "ranks_by_module": _case("partial", "ranks", rank=_growing),
    "some_blocks": _case("partial", keep=_some_blocks),
    "only_double": _case("partial", keep=lambda module: in_blocks(module) and not _single(module)),
    "only_single": _case("partial", keep=_single),
    "only_attention": _case("partial", "split", keep=_attention),
    "only_projections": _case("partial", keep=is_projection),
    "no_attention": _case("partial", "modulation", keep=lambda m: in_blocks(m) and not _attention(m)),
    "only_modulation": _case("partial", "modulation", keep=lambda m: in_blocks(m) and "norm" in m),
    "only_qv": _case("partial", "split", keep=_named("to_q", "to_v", "add_q_proj", "add_v_proj")),
    "only_kv": _case("partial", "split", keep=_named("to_k", "to_v", "add_k_proj", "add_v_proj")),
    "only_proj_mlp": _case("partial", "split", keep=_named("proj_mlp")),
    "no_proj_mlp": _case("partial", "split", keep=lambda module: in_blocks(module) and "proj_mlp" not in module),
    "ranks_of_parts": _case("partial", "split", "ranks", rank=_by_part),
    "shared_down": _case("partial", "split", "plain", shared_down=True),
    "block_diagonal": _case("fused", "plain", "partial", blocks=True),
    "deep": _case(sizes=Sizes(double=8, single=3)),
    "everything": _case("embedders", "partial", keep=anywhere),
    "only_embedders": _case("embedders", "partial", keep=lambda module: not in_blocks(module)),
    "only_final_layer": _case("embedders", "partial", keep=_final),
    "only_adaln": _case("embedders", "partial", keep=lambda module: module == "norm_out.linear"),
}
STORAGE = {
    "bfloat16": _case(dtype=torch.bfloat16),
    "float16": _case(dtype=torch.float16),
    "float8": _case(dtype=torch.float8_e4m3fn),
}
ALPHA = {
    "alpha_half": _case("alpha", ratio=_ratio(0.5)),
    "alpha_quadruple": _case("alpha", ratio=_ratio(4.0)),
    "alpha_five_of_three": _case("alpha", rank=_constant(3), ratio=_ratio(5 / 3)),
    "alpha_by_module": _case("alpha", "partial", ratio=lambda index, module: (0.25, 1.0, 2.0, 0.625)[index % 4]),
    "alpha_first_differs": _case("alpha", ratio=lambda index, module: 4.0 if index == 0 else 1.0),
    "alpha_and_ranks_by_module": _case(
        "alpha", "partial", rank=_growing, ratio=lambda index, _: (0.5, 1.5)[index % 2]
    ),
    "alpha_of_parts": _case("alpha", "partial", "split", rank=_by_part, ratio=lambda i, m: 1 / _by_part(i, m)),
    "alpha_negative": _case("alpha", ratio=_ratio(-0.5)),
    "alpha_zero": _case("alpha", ratio=_ratio(0.0)),
    "alpha_zero_on_some": _case("alpha", ratio=_every(3, 0.0, 1.0)),
    "alpha_with_everything": _case("alpha", "embedders", keep=anywhere, ratio=_ratio(0.5)),
    "alpha_of_last_differs": _case("alpha", "embedders", keep=anywhere, ratio=lambda i, m: 4.0 if _final(m) else 1.0),
    "alpha_on_some": _case("stored alpha", ratio=_every(2, 2.0, None)),
    "alpha_int64": _case("stored alpha", ratio=_ratio(0.5), alpha_dtype=torch.int64),
    "alpha_bfloat16": _case("stored alpha", rank=_constant(3), ratio=_ratio(5 / 3), alpha_dtype=torch.bfloat16),
    "alpha_vector": _case("stored alpha", ratio=_ratio(0.5), alpha_shape=(1,)),
    "alpha_in_bfloat16_file": _case("alpha", rank=_constant(3), ratio=_ratio(5 / 3), dtype=torch.bfloat16),
    "alpha_with_blocks": _case("alpha", "fused", "plain", blocks=True, ratio=_ratio(0.5)),
    "alpha_with_shared_down": _case("alpha", "split", "plain", shared_down=True, ratio=_every(2, 0.5, 3.0)),
}
CONFIG = {
    "rslora": _case("config", rslora=True, ratio=_ratio(2.0)),
    "rslora_ranks": _case("config", rslora=True, rank=_growing, ratio=_ratio(2.0)),
    "pattern_of_suffix": _case("config", patterns=({"attn.to_q": 2, "to_k": 6}, {"attn.to_q": 3, "proj_mlp": 1})),
    "pattern_of_proj_out": _case("config", keep=anywhere, patterns=({"proj_out": 2}, {"proj_out": 6})),
    "pattern_anchored": _case("config", keep=anywhere, patterns=({"^proj_out": 2}, {"^proj_out": 6})),
    "pattern_of_regex": _case(
        "config",
        patterns=({r"transformer_blocks\.\d+\.attn\.to_v": 5}, {r"single_transformer_blocks\.1\..*": 8, "to_v": 7}),
    ),
}
ENCODERS = {
    "with_clip": _case("clip", encoders=("clip",)),
    "with_t5": _case("t5", encoders=("t5",)),
    "with_both": _case("clip", "t5", encoders=("clip", "t5")),
    "only_clip": _case("clip", encoders=("clip",), transformer=False),
    "alpha_with_clip": _case("clip", "alpha", encoders=("clip",), ratio=_ratio(0.5)),
    "alpha_with_both": _case("clip", "t5", "alpha", encoders=("clip", "t5"), ratio=_every(2, 0.5, 3.0)),
}
EXTRAS = {
    "embeddings": _case("bundle", extras="bundle"),
    "embeddings_old": _case("bundle", "stored alpha", extras="bundle old"),
    "two_spellings": _case("twin", twin="disjoint"),
    "two_spellings_twice": _case("twin", twin="identical"),
    "two_spellings_fused": _case("twin", "diffusers names", twin="disjoint", row={"twin": KOHYA_TWIN}),
    "two_spellings_fused_twice": _case(
        "twin", "diffusers names", twin="identical", row={"twin": KOHYA_TWIN}, shared_down=True
    ),
    "two_spellings_alpha": _case("twin", twin="disjoint", ratio=_every(3, 0.5, 2.0)),
}
SPELLINGS = {
    "other_name": _case(
        "diffusers_peft_default", spelling={"down": "lora_A.style.weight", "up": "lora_B.style.weight"}
    ),
    "other_native_name": _case(
        "diffsynth_native", spelling={"down": "lora_A.style.weight", "up": "lora_B.style.weight"}
    ),
    "bare_suffix": _case("diffusers_peft", spelling={"down": "lora_A", "up": "lora_B"}),
    "compiled": _case("diffusers_noprefix_default", spelling={"prefix": "_orig_mod."}),
    "wrapped": _case("diffusers_noprefix_default", spelling={"prefix": "module."}),
    "sidecar": _case("peft_basemodel_default", row={"alpha": "sidecar"}, ratio=_ratio(2.0)),
    "stored_and_header": _case("diffusers_peft_meta", row={"alpha": "stored and header"}, ratio=_ratio(2.0)),
    "stored_and_header_comfy": _case("simpletuner_comfy", row={"alpha": "stored and header"}, ratio=_ratio(2.0)),
    "bias_and_alpha": _case("diffusers_peft_alpha", row={"bias": "lora_B.bias"}, ratio=_ratio(0.5)),
    "bias_everywhere": _case("diffusers_peft_bias", keep=anywhere),
    "magnitude_weight": _case("diffusers_peft_dora", row={"magnitude": "lora_magnitude_vector.weight"}),
    "magnitude_of_outputs": _case("onetrainer_dora", row={"magnitude_axis": "column"}, ratio=_ratio(0.5)),
    "magnitude_of_inputs": _case(
        "kohya_dora",
        row={"magnitude_axis": "in"},
        keep=lambda m: in_blocks(m) and not is_projection(m) and "mlp" not in m,
    ),
    "old_clip_names": _case(
        "diffusers_te_old",
        row={"encoders": {"clip": ("clip_old", Spelling("text_encoder.", *XLABS))}},
        encoders=("clip",),
    ),
    "fused_qkv": _case("simpletuner_lycoris_lora", row={"layout": "fused_qkv"}, ratio=_ratio(0.5)),
    "fused_qkv_lokr": _case("simpletuner_lycoris_lokr", row={"layout": "fused_qkv"}),
    "short_clip_prefix": _case(
        "kohya", row={"encoders": {"clip": ("clip", Spelling("lora_te_", *KOHYA, flat=True))}}, encoders=("clip",)
    ),
    "norms_in_extract": _case("comfy_extract", encoders=("clip",), extras="clip norms"),
    "pipe_without_name": _case("diffsynth_pipe", spelling={"down": "lora_A.weight", "up": "lora_B.weight"}),
    "sept2024_without_name": _case("diffsynth_sept2024", spelling={"down": "lora_A.weight", "up": "lora_B.weight"}),
}
LOKR = {
    f"factor_{factor}_{name}".replace("-1", "auto"): _case(
        "lokr", row={"factor": factor, "decomposed": decomposed}, ratio=_ratio(ratio), rank=_constant(2)
    )
    for factor in (-1, 4, 8)
    for name, decomposed, ratio in (
        ("full", (False, False), 3.0),
        ("second", (False, True), 0.5),
        ("first", (True, False), 1.5),
        ("both", (True, True), 1.0),
    )
}
LOKR["full_huge_alpha"] = _case("lokr", row={"decomposed": (False, False)}, ratio=_ratio(2.5e9))
CASES = {**COVERAGE, **STORAGE, **ALPHA, **CONFIG, **ENCODERS, **EXTRAS, **SPELLINGS, **LOKR}


def fits(row: Format, case: Case) -> bool:
    """Whether a format can hold a case."""
    return case.needs <= row.offers


@cache
def cases(format: str) -> tuple[str, ...]:
    """The names of the cases that a format can hold."""
    return tuple(name for name, case in CASES.items() if fits(TABLE[format], case))
