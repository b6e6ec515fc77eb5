"""The text encoders of diffusers' pipelines give the reference's prompt embeddings."""

import pytest
import torch
from diffusers import FluxPipeline

from benchmarks.support.reference import ReferencePair, import_reference, reference_pair


flux_image = import_reference("diffsynth.pipelines.flux_image")

PROMPTS = ["", "a red cat on the table", "photo of a big blue house and a small dog, " * 12]


@pytest.fixture(scope="module")
def pair() -> ReferencePair:
    return reference_pair(seed=11)


@pytest.mark.parametrize("length", [16, 64])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["empty", "short", "truncated"])
def test_prompt_embeddings_agree(pair: ReferencePair, prompt: str, length: int) -> None:
    reference = pair.reference
    with torch.no_grad():
        hidden_states, pooled, ids = flux_image.FluxImageUnit_PromptEmbedder().encode_prompt(
            reference.tokenizer_1,
            reference.tokenizer_2,
            reference.text_encoder_1,
            reference.text_encoder_2,
            prompt,
            device="cpu",
            t5_sequence_length=length,
        )
        ours = FluxPipeline(**pair.components).encode_prompt(prompt, prompt, max_sequence_length=length)
    torch.testing.assert_close(ours[0], hidden_states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], pooled, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours[2], ids[0])


def test_prompts_are_told_apart(pair: ReferencePair) -> None:
    pipe = FluxPipeline(**pair.components)
    with torch.no_grad():
        embeds = [pipe.encode_prompt(prompt, prompt, max_sequence_length=64)[:2] for prompt in PROMPTS]
    for one, other in [(0, 1), (1, 2)]:
        assert (embeds[one][0] - embeds[other][0]).abs().max() > 0.1
        assert (embeds[one][1] - embeds[other][1]).abs().max() > 0.1
