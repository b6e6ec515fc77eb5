"""Tiny CLIP (byte pair) and T5 (unigram) tokenizers, written in the layouts of the released repositories."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, T5TokenizerFast


WORDS = (
    "a an the cat dog bird tree red blue green yellow big small house car on in of and with photo sky hat table sits "
    "stands sign that says river mountain girl boy ugly blurry low quality left right"
).split()
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-:"


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _clip_merges(word: str) -> list[tuple[str, str]]:
    parts = [*word[:-1], word[-1] + "</w>"]
    merges = []
    while len(parts) > 1:
        merges.append((parts[0], parts[1]))
        parts = [parts[0] + parts[1], *parts[2:]]
    return merges


def write_clip_tokenizer(folder: Path) -> None:
    """Write `vocab.json` and `merges.txt`; `<|endoftext|>` has the largest id, as in the released tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(dict.fromkeys(pair for word in WORDS for pair in _clip_merges(word)))
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    config = {**special, "bos_token": "<|startoftext|>", "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    _write_json(folder / "tokenizer_config.json", config)


def write_t5_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` of a unigram model with `<pad>` = 0, `</s>` = 1, `<unk>` = 2 and no sentinel tokens."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [("▁" + word, -3.0 - 0.05 * index) for index, word in enumerate(WORDS)]
    vocabulary += [(character, -6.0 - 0.01 * index) for index, character in enumerate(CHARACTERS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    pieces: dict[str, Any] = {"replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**pieces)]
    )
    tokenizer.decoder = decoders.Metaspace(**pieces)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {**special, "extra_ids": 0, "model_max_length": 512, "tokenizer_class": "T5TokenizerFast"}
    _write_json(folder / "tokenizer_config.json", config)


@cache
def tiny_tokenizers() -> tuple[CLIPTokenizer, T5TokenizerFast]:
    """Make the tiny CLIP and T5 tokenizers, loaded by transformers from files in the released layouts.

    They know the words of `WORDS` and spell all others; one pair is shared by all callers.

    Returns:
        `tuple[CLIPTokenizer, T5TokenizerFast]`: Of at most 77 and 512 tokens.
    """
    with tempfile.TemporaryDirectory() as folder:
        clip, t5 = Path(folder, "tokenizer"), Path(folder, "tokenizer_2")
        clip.mkdir()
        t5.mkdir()
        write_clip_tokenizer(clip)
        write_t5_tokenizer(t5)
        return CLIPTokenizer.from_pretrained(clip), T5TokenizerFast.from_pretrained(t5)
