"""Stage "tokenizers": CLIP's byte-pair encoding and T5's unigram model over the world's captions."""

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from diffusers_flux_ext import flux_shapes
from diffusers_flux_ext.training import atomic_path

from .settings import Settings
from .text import varied_caption


# Words beyond the captions that users may try; they get pieces of their own, if not a meaning.
_EXTRA = (
    "a picture of shapes with no shapes, blurry, low quality",
    "draw an image photo in the center next to beside under over between",
    "grey large tiny medium pink cyan brown rectangle oval heart an empty plain background",
)
_CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_PRINTABLE = [chr(code) for code in range(33, 127)]


def build_tokenizers(settings: Settings) -> None:
    """Make both tokenizers.

    Args:
        settings (`Settings`): The run; writes its `tokenizers` folder.
    """
    rng = random.Random(settings.seed)
    scenes = itertools.islice(flux_shapes.iterate_scenes(settings.seed, held_out=None), 6000)
    corpus = [varied_caption(scene, rng) for scene in scenes] + list(_EXTRA) * 20
    with atomic_path(settings.tokenizers) as folder:
        _save_clip(corpus, folder / "tokenizer")
        T5Tokenizer(vocab=_t5_vocabulary(corpus), extra_ids=0, model_max_length=512).save_pretrained(
            folder / "tokenizer_2"
        )


def _save_clip(corpus: list[str], folder: Path) -> None:
    merges = _clip_merges(corpus)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    # The end of text has the highest id: CLIP's older way to pool looks for the largest id.
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *_CLIP_SPECIAL]))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _clip_merges(corpus: list[str]) -> list[Any]:
    reference = CLIPTokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_CLIP_SPECIAL[1]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        min_frequency=15,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _t5_vocabulary(corpus: list[str]) -> list[tuple[str, float]]:
    """Return whole words by frequency, then single characters, which spell everything else."""
    words = Counter(word for text in corpus for word in text.replace(",", " ").replace(".", " ").split())
    total = sum(words.values())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"\u2581{word}", math.log(count / total)) for word, count in sorted(words.items())]
    known = {piece for piece, _ in pieces}
    return pieces + [(letter, -12.0) for letter in ["\u2581", *_PRINTABLE] if letter not in known]
