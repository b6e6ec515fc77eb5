"""Single files by a link to the Hub, and configs that replace the inferred one, as the stock class takes them."""

import pytest
import torch
from safetensors.torch import save_file

from diffusers_flux_ext import FluxExtTransformer2DModel
from diffusers_flux_ext.checkpoints import hub
from diffusers_flux_ext.testing import tiny_transformer


AXES = (4, 6, 6)


@pytest.fixture(scope="module")
def model():
    return tiny_transformer(0)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "flux.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def downloads(file, monkeypatch):
    calls = []

    def download(repo, name, **arguments):
        calls.append((repo, name, arguments))
        return str(file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return calls


@pytest.mark.parametrize(
    "link, name, revision",
    [
        ("https://huggingface.co/a/b/blob/main/x.safetensors", "x.safetensors", "main"),
        ("https://huggingface.co/a/b/resolve/v2/deep/x.safetensors?download=true", "deep/x.safetensors", "v2"),
        ("hf.co/a/b/x.safetensors", "x.safetensors", None),
    ],
)
def test_a_link_is_fetched(model, downloads, link, name, revision):
    loaded = FluxExtTransformer2DModel.from_single_file(link, axes_dims_rope=AXES, token="secret", cache_dir=None)
    assert downloads == [("a/b", name, {"revision": revision, "token": "secret"})]
    assert all(torch.equal(weight, loaded.state_dict()[key]) for key, weight in model.state_dict().items())


def test_a_given_revision_goes_before_the_links(downloads):
    link = "https://huggingface.co/a/b/blob/main/x.safetensors"
    FluxExtTransformer2DModel.from_single_file(link, axes_dims_rope=AXES, revision="abc")
    assert downloads[0][2] == {"revision": "abc"}


def test_a_local_file_needs_no_hub(file, downloads):
    FluxExtTransformer2DModel.from_single_file(file, axes_dims_rope=AXES, local_files_only=True)
    assert downloads == []


@pytest.mark.parametrize("subfolder", [None, "transformer"])
def test_a_config_replaces_the_inferred_one(model, file, tmp_path, subfolder):
    model.save_config(tmp_path / (subfolder or ""))
    loaded = FluxExtTransformer2DModel.from_single_file(file, config=tmp_path, subfolder=subfolder)
    assert tuple(loaded.config.axes_dims_rope) == AXES


def test_a_config_of_another_model(file, tmp_path):
    tiny_transformer(0, num_layers=3).save_config(tmp_path)
    with pytest.raises(ValueError, match="transformer_blocks.2"):
        FluxExtTransformer2DModel.from_single_file(file, config=tmp_path)
