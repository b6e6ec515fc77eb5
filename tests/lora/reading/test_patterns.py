"""PEFT's name patterns: what `re` would say, in linear time, and nothing else than patterns for names."""

import json
import re
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_flux_ext import LoRAError, convert_lora
from diffusers_flux_ext.lora.reading import patterns
from diffusers_flux_ext.lora.reading.patterns import NamePatterns
from diffusers_flux_ext.lora.reading.scale import PEFT_HEADER


NAMES = (
    "transformer_blocks.0.attn.to_q", "transformer_blocks.11.attn.to_out.0", "single_transformer_blocks.3.proj_out",
    "proj_out", "x_embedder", "transformer_blocks.1.ff.net.0.proj", "a.b_0",
)  # fmt: skip
PATTERNS = (
    "to_q", "proj_out", "^proj_out", "^proj_out$", r"transformer_blocks\.\d+\.attn\.to_.*", "to_q|to_out.0", "",
    r"(?:to_q|.*out)", r"[0-9]+\.attn.*", r"blocks.[1-3]{1,2}\.attn\.to_out\.0", ".*", "[^.]+", "[^.]*?_?q", r"\w+",
    r"(?:\w+\.)*0", "(^proj|ff.net.0.pr)_?o?(ut|j)", r"[\w.]+out", "x_embedder|", "a{0}proj_out", "(a+)+$", r"\W?b_0",
    "[]a]", "ou*t|(p(r(o)j)_(out))", "o{,2}ut", r"a\.b_\d",
)  # fmt: skip
PIECES = r"a b . _ 0 \. \d [ab] [^a] * + ? | ( ) ^ $ {1,2} {2}".split()
TINY = {
    f"transformer.transformer_blocks.0.attn.{name}.lora_{side}.weight": torch.ones(shape)
    for name in ("to_q", "to_k")
    for side, shape in (("A", (2, 32)), ("B", (32, 2)))
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_fits_what_peft_s_expression_fits(pattern):
    fitting = [name for name in NAMES if re.match(rf"(.*\.)?({pattern})$", name)]
    found = NamePatterns([pattern])
    assert [name for name in NAMES if found.first(name) is not None] == fitting


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.lists(st.text("ab._0", min_size=1, max_size=6).filter(lambda name: name[-1] != "."), max_size=20),
)
def test_any_pattern_fits_what_the_expression_fits(pattern, names):
    try:
        expected = re.compile(rf"(.*\.)?({pattern})$")
        found = NamePatterns([pattern])
    except (re.error, LoRAError):
        return
    assert [found.first(name) is not None for name in names] == [expected.match(name) is not None for name in names]


def test_the_first_pattern_that_fits_wins():
    names = NamePatterns(["single_transformer_blocks.0.proj_out", "proj_out", ".*"])
    assert names.first("single_transformer_blocks.0.proj_out") == "single_transformer_blocks.0.proj_out"
    assert names.first("single_transformer_blocks.1.proj_out") == "proj_out"
    assert names.first("x_embedder") == ".*"
    assert NamePatterns(["to_q"]).first("to_k") is None


HOSTILE = (
    "(?i)to_q", "(?P<x>to_q)", "(?=to_q)", "\\1", "\\b", "[", "[z-a]", "[a-\\d]", "(", ")", "*", "a**", "a{2}{3}",
    "\\", "a{1,99999}", "a{x}", "a{,}", "a{3,1}", "(" * 5000, "(" * 25 + ")" * 25, "to_q" * 5000,
    "((a{200}){200}){200}",
)  # fmt: skip


@pytest.mark.parametrize("pattern", HOSTILE, ids=lambda pattern: pattern[:12])
def test_other_expressions_are_refused_in_a_short_message(pattern):
    with pytest.raises(LoRAError, match="pattern") as caught:
        NamePatterns([pattern])
    assert len(str(caught.value)) < 1000


def with_header(**entries):
    return {PEFT_HEADER: json.dumps({"transformer.r": 2, "transformer.lora_alpha": 2, **entries})}


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "(a|a)*b", "(x+x+)+y", "(.*.*.*.*.*.*)*z"])
def test_what_backtracks_without_end_is_matched_at_once(pattern):
    start = time.process_time()
    convert_lora(TINY, metadata=with_header(**{"transformer.alpha_pattern": {pattern: 4}}))
    assert time.process_time() - start < 2


def test_a_pattern_for_every_layer_is_fast_and_too_many_are_refused(monkeypatch):
    names = [f"{kind}transformer_blocks.{i}.attn.to_{x}" for kind in ("single_", "") for i in range(38) for x in "qkv"]
    found = NamePatterns(names)
    assert all(found.first(name) == name for name in names)
    assert found.work < patterns.MAX_WORK / 10
    monkeypatch.setattr(patterns, "MAX_WORK", 1000)
    with pytest.raises(LoRAError, match="too many names at once"):
        NamePatterns([".*" * 100 + str(i) for i in range(50)]).first("transformer_blocks.0.attn.to_q")


NUMBERS = ["null", "9" * 5000, "1e400", "NaN", "1e300", "1e-300", '"4"', "[]", "{}"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:6])
@pytest.mark.parametrize("entry", ["transformer.r", "transformer.lora_alpha", "transformer.rank_pattern"])
def test_numbers_of_the_header_are_read_or_refused(entry, number):
    value = f'{{"to_q": {number}}}' if entry.endswith("pattern") else number
    entries = {"transformer.r": "2", "transformer.lora_alpha": "2", entry: value}
    metadata = {PEFT_HEADER: "{" + ", ".join(f'"{name}": {content}' for name, content in entries.items()) + "}"}
    if number == "null" and not entry.endswith("pattern"):
        assert convert_lora(TINY, metadata=metadata)[0].keys() >= TINY.keys()
        return
    with pytest.raises(LoRAError, match=PEFT_HEADER) as caught:
        convert_lora(TINY, metadata=metadata)
    assert len(str(caught.value)) < 1000


def test_a_rank_that_is_not_the_tensors_is_refused():
    for rank in (0, 2.5, 3):
        with pytest.raises(LoRAError, match="contradicts"):
            convert_lora(TINY, metadata=with_header(**{"transformer.r": rank}))
