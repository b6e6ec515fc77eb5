"""Adapters that start from a file."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusers_flux_ext import convert_lora
from diffusers_flux_ext.lora.errors import LoRAError
from diffusers_flux_ext.testing import tiny_text_encoder, tiny_transformer
from diffusers_flux_ext.training.trained import ExportInfo, LoRAOptions, add_lora
from tests.fixtures.trained import shake, velocity


FORMATS = ("diffusers", "kohya", "bfl", "diffsynth", "onetrainer")


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 3},
        {"tied": True, "targets": "reference"},
        {"kind": "dora"},
        {"kind": "lokr", "alpha": 3},
        {"bias": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_training_goes_on_from_each_format(options: dict[str, Any], tmp_path: Path) -> None:
    first = tiny_transformer()
    beyond = options.get("bias") or options.get("kind")
    formats = [name for name in FORMATS if not beyond or name in ("diffusers", "onetrainer")]
    if options.get("kind") == "lokr":
        formats = ["onetrainer"]
    lora = add_lora(first, LoRAOptions(**{"rank": 2, **options}), formats=formats)
    shake(lora)
    lora.train(False)
    for path in lora.export(tmp_path, ExportInfo("base")):
        second = tiny_transformer()
        again = add_lora(second, LoRAOptions(**{"rank": 2, **options}), seed=1, init_from=path)
        torch.testing.assert_close(velocity(second), velocity(first), rtol=1e-5, atol=1e-5)
        assert again.named_parameters().keys() == lora.named_parameters().keys()


def exported(folder: Path, **options: Any) -> tuple[Path, torch.Tensor]:
    """A LoRA that was trained, and what the transformer with it computes."""
    transformer = tiny_transformer()
    lora = add_lora(transformer, LoRAOptions(**{"rank": 2, "targets": "attention", **options}))
    shake(lora)
    return lora.export(folder, ExportInfo("base"))[0], velocity(transformer)


def test_a_larger_rank_another_scale_and_further_targets_keep_the_update(tmp_path: Path) -> None:
    path, expected = exported(tmp_path, alpha=1)
    transformer = tiny_transformer()
    lora = add_lora(transformer, LoRAOptions("all-linear", rank=5, alpha=10), init_from=path)
    torch.testing.assert_close(velocity(transformer), expected, rtol=1e-5, atol=1e-5)
    # The added rank can be trained: its rows of `down` are not zero.
    down = lora.state()["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"]
    assert bool((down[2:] != 0).all())


def test_a_text_encoder_of_either_spelling(tmp_path: Path) -> None:
    encoder, ids = tiny_text_encoder(), torch.tensor([[3, 4, 5, 1]])
    options = LoRAOptions("attention", rank=2)
    lora = add_lora({"text_encoder": encoder}, options, formats=["diffusers", "kohya"])
    shake(lora)
    for path in lora.export(tmp_path, ExportInfo("base")):
        second = tiny_text_encoder()
        add_lora({"text_encoder": second}, options, init_from=path)
        torch.testing.assert_close(second(ids)[0], encoder(ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "saved, options, message",
    [
        ({"rank": 4}, {}, "lora_A.weight` of the shape \\(4, 32\\) .* \\(2, 32\\) is trained. Raise `rank`"),
        ({}, {"targets": ["*.to_q"]}, "updates 20 layers that are not trained"),
        ({"bias": True}, {}, "has \\['lora_B.bias'\\] for"),
        ({"kind": "dora"}, {}, "has a DoRA for"),
        ({}, {"kind": "dora"}, "has a LoRA for"),
        ({}, {"kind": "lokr"}, "has a LoRA for"),
        ({}, {"tied": True}, "different factors `down` for layers that are tied with `single_.*to_q`"),
    ],
)
def test_what_does_not_fit_is_refused_and_names_the_file(
    saved: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path, _ = exported(tmp_path, **saved)
    transformer = tiny_transformer()
    base = velocity(transformer)
    with pytest.raises(LoRAError, match=message) as caught:
        add_lora(transformer, LoRAOptions(**{"rank": 2, "targets": "attention", **options}), init_from=path)
    assert str(path) in str(caught.value)
    assert torch.equal(velocity(transformer), base)
    assert not getattr(transformer, "peft_config", None)


def test_tensors_of_a_fused_file_start_tied_adapters(tmp_path: Path) -> None:
    path, expected = exported(tmp_path, tied=True)
    tensors, _ = convert_lora(path, to="kohya")
    transformer = tiny_transformer()
    add_lora(transformer, LoRAOptions("attention", rank=2, tied=True), init_from=tensors)
    torch.testing.assert_close(velocity(transformer), expected, rtol=1e-5, atol=1e-5)
