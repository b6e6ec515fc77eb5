"""What diffusers' tests fetch from the Hub, made locally with the sizes that they expect."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from diffusers_flux_ext.testing import tiny_tokenizers
from diffusers_flux_ext.testing.components import CLIP, T5


WIDTH = 32
REPOSITORIES = {
    "hf-internal-testing/tiny-random-t5": "t5",
    "hf-internal-testing/tiny-random-clip": "clip",
    "peft-internal-testing/tiny-clip-text-2": "clip",
}
LOADERS = (AutoConfig, AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast)


def save_text_encoders(folder: Path) -> None:
    """Write a CLIP and a T5 text encoder with their tokenizers into `folder/clip` and `folder/t5`."""
    tokenizer, tokenizer_2 = tiny_tokenizers()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    sizes = {**CLIP, **ids, "hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": 5}
    torch.manual_seed(0)
    clip = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **sizes))
    # Some of the tests leave the models in training mode.
    t5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer_2), **{**T5, "d_model": WIDTH, "dropout_rate": 0.0}))
    for name, parts in {"clip": (clip, tokenizer), "t5": (t5, tokenizer_2)}.items():
        for part in parts:
            part.save_pretrained(folder / name)


@contextmanager
def served_locally(folder: Path) -> Iterator[None]:
    """While it is open, transformers' classes find the repositories of diffusers' tests in `folder`."""

    def redirected(load: Any) -> classmethod:
        def from_pretrained(cls: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs = {key: value for key, value in kwargs.items() if (key, value) != ("subfolder", "")}
            local = REPOSITORIES.get(name) if isinstance(name, str) else None
            loaded = load.__func__(cls, folder / local if local else name, *args, **kwargs)
            if local and hasattr(loaded, "config"):
                # PEFT compares a model with the folder that it names, and may save its embeddings.
                loaded.config._name_or_path = loaded.name_or_path = ""
            return loaded

        return classmethod(from_pretrained)

    with pytest.MonkeyPatch.context() as patch:
        for loader in LOADERS:
            patch.setattr(loader, "from_pretrained", redirected(loader.from_pretrained))
        yield
