"""Step1X-Edit against the reference's: the connector, the text, the embeddings, and the whole loop."""

from pathlib import Path

import pytest
import torch

from benchmarks.support.parity.loop import TOLERANCE, reference_images
from benchmarks.support.reference import reference_connector, reference_embedder, reference_pair
from benchmarks.support.tiny.qwen_vl import tiny_mllm, write_qwen_tokenizer
from benchmarks.support.tiny.step1x import edited, instruction_embeds, tiny_connector
from diffusers_flux_ext import FluxFlowMatchScheduler, FluxStep1XEditPipeline, QwenVLProcessor, combine_velocities
from diffusers_flux_ext.canvas import pack_latents
from diffusers_flux_ext.inputs.qwen_vl import ImageProcessor
from diffusers_flux_ext.methods.step1x_edit.instructions import encode_instructions, instruction_tokens
from diffusers_flux_ext.testing import quiet, seeded


# The ids that the reference compares with.
RELEASED = {"âĢľ": 2073, "âĢĿ": 854, "<|vision_end|>": 151653}
TEXTS = [
    "make it red",
    "",
    'write "the sign" on it',
    "write “the red” and 'Given'",
    "the dog's hat! red !",
    'an open "quote with 红 and é',
    '""x"" ".,"',
]


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    write_qwen_tokenizer(Path(folder), RELEASED)
    ImageProcessor().save_pretrained(folder)
    return QwenVLProcessor.from_pretrained(folder)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_connector(depth):
    connector = tiny_connector(3, num_layers=depth)
    reference = reference_connector(connector)
    states, mask = instruction_embeds(1, 3, 9), torch.arange(9)[None] < torch.tensor([[9], [5], [1]])
    for timestep in (torch.tensor([1.0, 0.4, 0.03]), torch.zeros(3)):
        tokens, pooled = connector(states, mask, timestep)
        expected, expected_pooled = reference(states, timestep, mask.long())
        torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(pooled, expected_pooled, atol=1e-4, rtol=0)
    other, _ = connector(states, mask, torch.tensor([0.4, 0.4, 0.4]))
    assert (other[0] - connector(states, mask, torch.tensor([1.0, 0.4, 0.03]))[0][0]).abs().max() > 1e-3


def test_the_text_is_cut_in_the_same_places(processor):
    mllm = _Recorder()
    embedder = reference_embedder(mllm, processor)
    for text in TEXTS:
        with pytest.raises(StopIteration):
            embedder([text], [edited()])
        image_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ours = instruction_tokens(processor, text)
        place = ours.index(image_id)
        theirs = mllm.ids[0].tolist()
        count = theirs.count(image_id)
        assert ours[:place] + [image_id] * count + ours[place + 1 :] == theirs
        assert 256 <= count <= 324


class _Recorder:
    """Keeps the token ids that it is asked for."""

    def __init__(self):
        config = type("Config", (), {"hidden_size": 4, "image_token_id": 0})()
        config.get_text_config = lambda: config
        self.config = config

    def model(self, input_ids, **kwargs):
        self.ids = input_ids
        raise StopIteration


def test_the_embeddings(processor):
    mllm = tiny_mllm(0, processor)
    # Without exclamation marks: today's transformers gives them another position than that of the reference.
    texts = ['write "the" on the dog\'s hat', ""]
    pictures = [edited(0, (120, 60)), edited(1, (300, 500))]
    expected, expected_mask = reference_embedder(mllm, processor)(texts, pictures)
    embeds, mask = encode_instructions(mllm, processor, texts, pictures)
    assert torch.equal(mask, expected_mask.bool())
    # The reference rounds to bfloat16.
    assert torch.equal(embeds.to(torch.bfloat16), expected)


@pytest.fixture(scope="module")
def pair():
    both = reference_pair(seed=3, guidance_embeds=False)
    components = {**both.components, "scheduler": FluxFlowMatchScheduler(), "connector": tiny_connector(3)}
    ours = quiet(FluxStep1XEditPipeline(**components))
    both.reference.step1x_connector = reference_connector(components["connector"])
    return both.reference, ours


@pytest.mark.parametrize("guided", [False, True])
def test_the_loop(pair, guided):
    reference, ours = pair
    picture, states = edited(2, (64, 48)), instruction_embeds(1, 2, 9)
    mask = torch.arange(9)[None] < torch.tensor([[9], [6]])
    reference.qwenvl = lambda texts, images: (states, mask.long())
    scale = 2.0 if guided else 1.0
    expected = reference_images(
        reference, {"step1x_reference_image": picture, "negative_prompt": "ugly", "cfg_scale": scale}
    ).clamp(-1, 1)
    embeds = {
        "instruction_embeds": states[:1],
        "instruction_mask": mask[:1],
        "negative_instruction_embeds": states[1:],
        "negative_instruction_mask": mask[1:],
    }
    images = draw(ours, picture, embeds, scale)
    torch.testing.assert_close(images, expected, atol=TOLERANCE, rtol=0)
    embeds["instruction_embeds"] = states[1:]
    assert (draw(ours, picture, embeds, scale) - expected).abs().max() > 0.01
    embeds["instruction_embeds"] = states[:1]
    assert (draw(ours, edited(4, (64, 48)), embeds, scale) - expected).abs().max() > 0.01


def draw(ours, picture, embeds, scale):
    noise = torch.randn(1, 16, 6, 8, generator=seeded())
    return (
        ours(
            image=picture, height=48, width=64, num_inference_steps=4, true_cfg_scale=scale, output_type="pt",
            latents=pack_latents(noise), **embeds
        ).images * 2 - 1
    )  # fmt: skip


def test_the_rescaled_guidance():
    cond, uncond = torch.randn(2, 2, 5, 8, generator=seeded()) * torch.tensor([0.1, 0.3, 1, 2, 4])[:, None]
    difference = cond - uncond
    norm = torch.norm(difference, dim=2, keepdim=True)
    divisor = torch.where(norm > 1.0, norm**0.4, torch.ones_like(norm))
    expected = uncond + 6.0 * difference / divisor
    torch.testing.assert_close(combine_velocities(cond, uncond, 6.0, norm_power=0.4), expected)
    assert (norm < 1).any()
    assert (norm > 1).any()
