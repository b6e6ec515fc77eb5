"""Variants of captions and the choice of one."""

from collections import Counter

import pytest

from diffusers_flux_ext.training.data import Captions
from diffusers_flux_ext.training.draws import Draws


def variants(captions: Captions, prompt: object, **options: object) -> list[str]:
    return captions.variants("row 1", {"prompt": prompt}, Draws(0), 5, **options)  # type: ignore[arg-type]


def test_texts_of_all_columns_are_variants() -> None:
    captions = Captions(columns=("prompt", "short"))
    values = {"prompt": ["a", "b", "a"], "short": "c"}
    assert captions.variants("row", values, Draws(0), 0) == ["a", "b", "c"]


def test_shuffled_tags_keep_the_first_and_lose_none() -> None:
    found = variants(Captions(shuffles=5, keep=2), "one, two, three,four , five")
    assert 1 < len(found) <= 5
    assert all(text.startswith("one, two, ") for text in found)
    assert all(sorted(text.split(", ")) == ["five", "four", "one", "three", "two"] for text in found)
    assert found == variants(Captions(shuffles=5, keep=2), "one, two, three,four , five")


def test_prefix_and_trigger_are_put_in() -> None:
    assert variants(Captions(), "a cat", prefix="photo of ") == ["photo of a cat"]
    assert variants(Captions(), "[trigger] on a sofa", trigger="sks") == ["sks on a sofa"]
    assert variants(Captions(), "a cat", trigger="sks") == ["sks, a cat"]
    assert variants(Captions(), "a sks cat", trigger="sks") == ["a sks cat"]
    with pytest.raises(ValueError, match=r"row 1: the caption has \[trigger\]"):
        variants(Captions(), "[trigger] on a sofa")


def test_missing_captions_are_refused_unless_allowed() -> None:
    for prompt in (None, "", "  ", []):
        with pytest.raises(ValueError, match="row 1 has no caption"):
            variants(Captions(), prompt)
        assert variants(Captions(allow_missing=True), prompt) == [""]
        assert variants(Captions(allow_missing=True), prompt, prefix="photo ", trigger="sks") == ["sks, photo"]
    with pytest.raises(ValueError, match="row 1: `prompt` must be a text"):
        variants(Captions(), 3)


def test_the_choice_depends_on_sample_and_epoch_and_drops_its_share() -> None:
    captions, texts = Captions(dropout=0.25), ["a", "b", "c"]
    chosen = [captions.choose(texts, Draws(3), index, 1) for index in range(2000)]
    assert chosen == [captions.choose(texts, Draws(3), index, 1) for index in range(2000)]
    assert chosen != [captions.choose(texts, Draws(3), index, 2) for index in range(2000)]
    shares = {text: count / 2000 for text, count in Counter(chosen).items()}
    assert all(abs(shares[text] - 0.25) < 0.04 for text in ("", "a", "b", "c"))


@pytest.mark.parametrize(
    "options", [{"dropout": 1.5}, {"shuffles": -1}, {"keep": -1}, {"separator": ""}, {"columns": ()}]
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Captions(**options)
