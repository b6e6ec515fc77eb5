"""The conversion script of InfiniteYou on tiny files in the published layout."""

import torch
from diffusers import FluxControlNetModel

from benchmarks.support.tiny.infinite_you import tiny_identity_modules
from conversion_scripts import convert_infinite_you as script
from diffusers_flux_ext import InfiniteYouImageProjector


def run(*arguments):
    return script.main([str(argument) for argument in arguments])


def test_both_parts_load(tmp_path):
    modules = tiny_identity_modules()
    source = tmp_path / "aes_stage2"
    modules["controlnet"].save_pretrained(source / "InfuseNetModel")
    torch.save({"image_proj": modules["image_projector"].state_dict()}, source / "image_proj_model.bin")
    assert run(source, tmp_path / "out", "--dim-head", 8) == 0
    for name, kind in (("controlnet", FluxControlNetModel), ("image_projector", InfiniteYouImageProjector)):
        loaded = kind.from_pretrained(tmp_path / "out" / name)
        weights = modules[name].state_dict()
        assert all(torch.equal(weight, weights[key]) for key, weight in loaded.state_dict().items())
    assert run(source, tmp_path / "out") == 1


def test_wrong_inputs_write_nothing(tmp_path, capsys):
    assert run(tmp_path / "absent", tmp_path / "out") == 1
    assert "no config.json" in capsys.readouterr().err
    tiny_identity_modules()["controlnet"].save_pretrained(tmp_path / "source" / "InfuseNetModel")
    assert run(tmp_path / "source", tmp_path / "out") == 1
    assert "image_proj_model.bin" in capsys.readouterr().err
    torch.save({"image_proj": {"a": torch.zeros(1)}}, tmp_path / "source" / "image_proj_model.bin")
    assert run(tmp_path / "source", tmp_path / "out") == 1
    assert "not an image projector" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
