"""Streaming of blocks from disk."""

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from diffusers_flux_ext import disk_streaming_stats, load_streamed, stop_disk_streaming, stream_from_disk
from tests.fixtures.tiny import call_kwargs, tiny_components, tiny_pipeline


def inputs(**changes):
    """Arguments of a short call of the tiny transformer."""
    generator = torch.Generator().manual_seed(0)
    base = {
        "hidden_states": torch.randn(1, 6, 64, generator=generator),
        "encoder_hidden_states": torch.randn(1, 4, 32, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(4, 3),
        "guidance": torch.tensor([3.5]),
        "return_dict": False,
    }
    return {**base, **changes}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a tiny transformer, in one file and in several, and of a tiny T5; and the models."""
    folder = tmp_path_factory.mktemp("saved")
    components = tiny_components(0)
    components["transformer"].save_pretrained(folder / "transformer")
    components["transformer"].save_pretrained(folder / "sharded", max_shard_size="300KB")
    components["text_encoder_2"].save_pretrained(folder / "t5")
    return folder


def test_images_are_those_of_the_ordinary_module(saved):
    pipe = tiny_pipeline(FluxPipeline)
    expected = pipe(**call_kwargs(negative_prompt="x", true_cfg_scale=2.0)).images
    transformer = load_streamed(FluxTransformer2DModel, saved / "sharded")
    text_encoder = load_streamed(type(pipe.text_encoder_2), saved / "t5")
    pipe = tiny_pipeline(FluxPipeline, transformer=transformer, text_encoder_2=text_encoder)
    assert torch.equal(pipe(**call_kwargs(negative_prompt="x", true_cfg_scale=2.0)).images, expected)
    assert disk_streaming_stats(transformer).blocks_unused == 0


def test_stopping_restores_the_weights(saved, tmp_path):
    transformer = FluxTransformer2DModel.from_pretrained(saved / "transformer")
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    stream_from_disk(transformer, offload_dir=tmp_path)
    assert "transformer_blocks.0.attn.to_q.weight" not in dict(transformer.named_parameters())
    stop_disk_streaming(transformer)
    after = transformer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
