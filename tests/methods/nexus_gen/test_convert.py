"""The conversion script of Nexus-Gen on tiny files in the published layout."""

import torch

from benchmarks.support.tiny.nexus_gen import (
    published_decoder,
    tiny_adapter,
    tiny_language_model,
    tiny_merger,
    write_published_folder,
)
from conversion_scripts import convert_nexus_gen as script
from diffusers_flux_ext import (
    FluxExtTransformer2DModel,
    NexusGenAdapter,
    NexusGenEditingMerger,
    NexusGenModel,
    QwenVLProcessor,
)
from diffusers_flux_ext.testing import tiny_transformer


RELEASED_HEADS = {
    "hidden_size": 128,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "mrope_section": (16, 24, 24),
}


def run(*arguments):
    return script.main([str(argument) for argument in arguments])


def same(one, other):
    return all(torch.equal(weight, other.state_dict()[key]) for key, weight in one.state_dict().items())


def test_everything(tmp_path):
    source, target = tmp_path / "Nexus-GenV2", tmp_path / "out"
    source.mkdir()
    write_published_folder(source)
    adapter, merger = tiny_adapter(1), tiny_merger(2, **RELEASED_HEADS)
    torch.save(published_decoder(tiny_transformer(3), adapter), source / "generation_decoder.bin")
    torch.save(published_decoder(tiny_transformer(4), merger), source / "edit_decoder.bin")
    assert run(source, target, "--axes-dims-rope", 4, 6, 6) == 0
    for decoder, seed in (("generation", 3), ("editing", 4)):
        loaded = FluxExtTransformer2DModel.from_pretrained(target / decoder / "transformer")
        assert same(loaded, tiny_transformer(seed))
    assert same(NexusGenAdapter.from_pretrained(target / "generation" / "generation_adapter"), adapter)
    assert same(NexusGenEditingMerger.from_pretrained(target / "editing" / "editing_adapter"), merger)
    assert same(NexusGenModel.from_pretrained(target / "mllm"), tiny_language_model()[0])
    assert QwenVLProcessor.from_pretrained(target / "mllm_processor").image_processor.patch_size == 14
    assert run(source, target) == 1


def test_wrong_inputs_write_nothing(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    assert run(source, tmp_path / "out") == 1
    assert "holds nothing of Nexus-Gen" in capsys.readouterr().err
    torch.save({"a": torch.zeros(1)}, source / "edit_decoder.bin")
    assert run(source, tmp_path / "out") == 1
    assert "holds `pipe.dit.*` and either" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
