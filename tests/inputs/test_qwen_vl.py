"""Qwen2.5-VL: the processor, the inputs, and the three-dimensional positions."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.support.tiny.qwen_vl import tiny_mllm, tiny_qwen_processor
from diffusers_flux_ext import QwenVLProcessor
from diffusers_flux_ext.inputs.qwen_vl import (
    IMAGE_SPAN,
    chat_text,
    fit_image,
    hide_tokens,
    known_inputs,
    last_hidden_states,
    qwen_vl_inputs,
    tokenize,
)


pytestmark = pytest.mark.versions
# As published with Qwen2.5-VL, for one system turn and text and pictures by turns.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def colors(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def processor() -> QwenVLProcessor:
    return tiny_qwen_processor()


@pytest.fixture(scope="module")
def mllm() -> Any:
    return tiny_mllm()


@pytest.fixture(scope="module")
def inputs(processor: QwenVLProcessor) -> dict[str, torch.Tensor]:
    text = chat_text(f"make {IMAGE_SPAN} like {IMAGE_SPAN} but red")
    return qwen_vl_inputs(processor, text, [colors(90, 50), colors(60, 120, seed=1)])


def positions(inputs: dict[str, torch.Tensor], image_token_id: int) -> torch.Tensor:
    """Positions by their definition: text counts on; a picture's tokens stand at its start plus (0, row, column)."""
    grids = iter((inputs["image_grid_thw"] // torch.tensor([1, 2, 2])).tolist())
    ids, place, columns, index = inputs["input_ids"][0].tolist(), 0, [], 0
    while index < len(ids):
        if ids[index] != image_token_id:
            columns.append((place, place, place))
            place, index = place + 1, index + 1
            continue
        _, rows, width = next(grids)
        columns += [(place, place + row, place + column) for row in range(rows) for column in range(width)]
        place, index = place + max(rows, width), index + rows * width
    return torch.tensor(columns).T[:, None]


def test_hidden_states_have_the_right_positions(mllm: Any, inputs: dict[str, torch.Tensor]) -> None:
    right = positions(inputs, mllm.config.image_token_id)
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 8, 4]]
    expected = last_hidden_states(mllm, {**inputs, "position_ids": right})
    torch.testing.assert_close(last_hidden_states(mllm, inputs), expected)
    flat = torch.arange(right.shape[-1]).expand(3, 1, -1)
    assert (last_hidden_states(mllm, {**inputs, "position_ids": flat}) - expected).abs().max() > 0.1


def test_hidden_tokens_are_not_counted_and_stand_at_one(mllm: Any, inputs: dict[str, torch.Tensor]) -> None:
    hidden = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    assert torch.equal(last_hidden_states(mllm, hide_tokens(mllm, inputs, hidden)), last_hidden_states(mllm, inputs))
    hidden[0, [20, -3]] = True
    seen = {**inputs, "input_ids": inputs["input_ids"][~hidden][None]}
    right = torch.ones(3, *hidden.shape, dtype=torch.long)
    right[:, ~hidden] = positions(seen, mllm.config.image_token_id)[:, 0]
    expected = {**inputs, "attention_mask": (~hidden).long(), "position_ids": right}
    states = last_hidden_states(mllm, hide_tokens(mllm, inputs, hidden))
    assert torch.equal(states, last_hidden_states(mllm, expected))
    # The others are what they are without the hidden ones.
    without = {**inputs, **{name: inputs[name][~hidden][None] for name in ("input_ids", "mm_token_type_ids")}}
    without["attention_mask"] = torch.ones_like(without["input_ids"])
    torch.testing.assert_close(states[~hidden][None], last_hidden_states(mllm, without))


def test_without_the_kinds_of_tokens_the_positions_are_wrong(mllm: Any, inputs: dict[str, torch.Tensor]) -> None:
    if "mm_token_type_ids" not in known_inputs(inputs):
        pytest.skip("the installed transformers finds the pictures by their token ids")
    without = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    change = last_hidden_states(mllm, without) - last_hidden_states(mllm, inputs)
    assert change.abs().max() > 0.1


def test_calls_do_not_depend_on_what_ran_before(
    mllm: Any, processor: QwenVLProcessor, inputs: dict[str, torch.Tensor]
) -> None:
    first = last_hidden_states(mllm, inputs)
    last_hidden_states(mllm, qwen_vl_inputs(processor, chat_text(f"{IMAGE_SPAN} another text"), [colors(40, 40)]))
    last_hidden_states(mllm, qwen_vl_inputs(processor, chat_text("only text")))
    assert torch.equal(last_hidden_states(mllm, inputs), first)


def test_hidden_states_come_after_the_last_norm(mllm: Any, inputs: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        expected = mllm.model(**known_inputs(inputs)).last_hidden_state
    torch.testing.assert_close(last_hidden_states(mllm, inputs), expected)


def test_only_arguments_that_transformers_knows_are_passed(inputs: dict[str, torch.Tensor]) -> None:
    class Older:
        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> None: ...

    assert known_inputs(inputs, Older).keys() == inputs.keys() - {"mm_token_type_ids"}


def test_pictures_are_prepared_as_by_the_image_processor(processor: QwenVLProcessor) -> None:
    pictures = [colors(90, 50), colors(200, 300)]
    ours = qwen_vl_inputs(processor, chat_text(IMAGE_SPAN * 2), pictures)
    theirs = processor.image_processor(images=pictures, return_tensors="pt")
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    repeated = (ours["image_grid_thw"].prod(-1) // 4).sum()
    assert int(ours["mm_token_type_ids"].sum()) == int(repeated)


def test_chat_text_is_what_the_published_template_writes(processor: QwenVLProcessor) -> None:
    content = [{"type": "text", "text": "see "}, {"type": "image"}, {"type": "text", "text": " now"}]
    written = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=CHAT_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert chat_text(f"see {IMAGE_SPAN} now") == written


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 150), (4000, 20), (3000, 2000)], ids=["one pixel", "narrow", "wide", "large"]
)
def test_pictures_of_any_size_stay_in_bounds(processor: QwenVLProcessor, size: tuple[int, int]) -> None:
    least, greatest = 256 * 28 * 28, 324 * 28 * 28
    seen = fit_image(Image.new("RGB", size), processor, least, greatest)
    assert seen.width % 28 == 0
    assert seen.height % 28 == 0
    assert least <= seen.width * seen.height
    # transformers rounds the short side of thin pictures up to whole tokens.
    assert seen.width * seen.height <= greatest or max(size) > 100 * min(size)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_any_mode(mllm: Any, processor: QwenVLProcessor, mode: str) -> None:
    inputs = qwen_vl_inputs(processor, chat_text(IMAGE_SPAN), [colors(60, 60).convert(mode)])
    assert torch.isfinite(last_hidden_states(mllm, inputs)).all()


def test_arrays_and_tensors_are_pictures(processor: QwenVLProcessor) -> None:
    picture = colors(60, 60)
    expected = qwen_vl_inputs(processor, chat_text(IMAGE_SPAN), [picture])["pixel_values"]
    array = np.asarray(picture)
    for other in (array, torch.from_numpy(array.copy()).movedim(-1, 0)):
        assert torch.equal(qwen_vl_inputs(processor, chat_text(IMAGE_SPAN), [other])["pixel_values"], expected)


def test_wrong_inputs_are_refused(processor: QwenVLProcessor) -> None:
    with pytest.raises(ValueError, match="1001 x 5 pixels"):
        qwen_vl_inputs(processor, chat_text(IMAGE_SPAN), [Image.new("RGB", (1001, 5))])
    with pytest.raises(ValueError, match="0 times, got 1 images"):
        qwen_vl_inputs(processor, chat_text("no place"), [colors(30, 30)])
    with pytest.raises(ValueError, match="2 times, got 1 images"):
        qwen_vl_inputs(processor, chat_text(IMAGE_SPAN + "<|image_pad|>"), [colors(30, 30)])


def test_token_ids_serve_as_text(processor: QwenVLProcessor) -> None:
    text, picture = chat_text(f"{IMAGE_SPAN} the sign"), colors(60, 60)
    by_text = qwen_vl_inputs(processor, text, [picture])
    by_ids = qwen_vl_inputs(processor, tokenize(processor, text), [picture])
    assert all(torch.equal(by_text[name], by_ids[name]) for name in by_text)


def test_processor_is_saved_and_loaded(processor: QwenVLProcessor, tmp_path: Any) -> None:
    processor.save_pretrained(tmp_path)
    loaded = QwenVLProcessor.from_pretrained(tmp_path)
    text, pictures = chat_text(f"{IMAGE_SPAN} the red sign"), [colors(300, 20)]
    before, after = qwen_vl_inputs(processor, text, pictures), qwen_vl_inputs(loaded, text, pictures)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_offloaded_models_run(inputs: dict[str, torch.Tensor], mllm: Any) -> None:
    from diffusers.hooks import apply_group_offloading

    model = tiny_mllm()
    apply_group_offloading(model, onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(last_hidden_states(model, inputs), last_hidden_states(mllm, inputs))


def test_bfloat16_weights_take_float_pictures(inputs: dict[str, torch.Tensor]) -> None:
    states = last_hidden_states(tiny_mllm().to(torch.bfloat16), inputs)
    assert states.dtype == torch.bfloat16
    assert torch.isfinite(states).all()


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_run(inputs: dict[str, torch.Tensor], mllm: Any) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(mllm, {torch.nn.Linear}, dtype=torch.qint8)
    states = last_hidden_states(quantised, inputs)
    assert 0 < (states - last_hidden_states(mllm, inputs)).abs().mean() < 0.2
