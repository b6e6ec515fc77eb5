"""`AutoencoderKLFlux`: tiling against the untiled model, its limits, and loading."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_flux_ext.models.autoencoder_kl_flux import AutoencoderKLFlux


TINY: dict[str, Any] = {"block_out_channels": (4, 4, 8, 8), "norm_num_groups": 2, "layers_per_block": 1}


def tiny_vae(kind: type[AutoencoderKL] = AutoencoderKLFlux, **overrides: Any) -> Any:
    torch.manual_seed(0)
    config = {name: p.default for name, p in inspect.signature(AutoencoderKLFlux).parameters.items()}
    return kind(**{**config, **TINY, **overrides}).eval().requires_grad_(False)


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.manual_seed(1)) * 2 - 1


def latents(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.manual_seed(2))


def encode(vae: AutoencoderKL, x: torch.Tensor) -> torch.Tensor:
    return vae.encode(x).latent_dist.parameters


class RecordedSizes:
    """Wraps the encoder and the decoder of a VAE and keeps the sizes of what they are given."""

    def __init__(self, vae: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: dict[str, list[tuple[int, int]]] = {"encoder": [], "decoder": []}
        for name, sizes in self.sizes.items():
            self._wrap(getattr(vae, name), sizes, monkeypatch)

    @staticmethod
    def _wrap(module: torch.nn.Module, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
        forward = module.forward

        def recorded(sample: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(sample.shape[-2:]))
            return forward(sample)

        monkeypatch.setattr(module, "forward", recorded)


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (16, 8)])
def test_picture_that_fits_into_a_tile_is_untouched(size: tuple[int, int]) -> None:
    vae, x, z = tiny_vae(), picture(*size), latents(size[0] // 8, size[1] // 8)
    whole = encode(vae, x), vae.decode(z).sample
    vae.enable_tiling(64)
    assert torch.equal(encode(vae, x), whole[0])
    assert torch.equal(vae.decode(z).sample, whole[1])


def test_pictures_below_1024_pixels_are_tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny_vae()
    vae.enable_tiling(64, 32)
    recorded = RecordedSizes(vae, monkeypatch)
    encode(vae, picture(104, 64))
    vae.decode(latents(13, 8))
    assert recorded.sizes == {"encoder": [(56, 64)] * 3, "decoder": [(7, 8)] * 3}


def test_default_tile_is_1024_pixels_with_a_quarter_of_overlap() -> None:
    vae = tiny_vae()
    vae.enable_tiling()
    assert (vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_sample_stride) == (1024, 128, 768)
    assert vae.tile_overlap_factor == 0.25


@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=15, deadline=None)
def test_every_size_gives_finite_results_of_the_untiled_shape(height: int, width: int, data: st.DataObject) -> None:
    vae = tiny_vae()
    x = picture(height * 8 + data.draw(st.integers(0, 7)), width * 8 + data.draw(st.integers(0, 7)))
    z = latents(height, width)
    shapes = encode(vae, x).shape, vae.decode(z).sample.shape
    tile = data.draw(st.integers(1, 6))
    vae.enable_tiling(tile * 8, data.draw(st.integers(1, tile)) * 8)
    for tiled, shape in zip((encode(vae, x), vae.decode(z).sample), shapes):
        assert tiled.shape == shape
        assert tiled.isfinite().all()


def test_tiles_resemble_the_whole() -> None:
    vae, x, z = tiny_vae(), picture(192, 256), latents(24, 32)
    whole = encode(vae, x), vae.decode(z).sample
    vae.enable_tiling(128, 64)
    for tiled, expected in zip((encode(vae, x), vae.decode(z).sample), whole):
        assert not torch.equal(tiled, expected)
        assert (tiled - expected).pow(2).mean() < 0.05 * expected.var()


def test_constant_tiles_give_a_constant_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny_vae()
    vae.enable_tiling(64, 24)
    monkeypatch.setattr(vae.decoder, "forward", lambda z: torch.full((len(z), 3, 64, 64), 0.7))
    decoded = vae.decode(latents(17, 23, batch=2)).sample
    torch.testing.assert_close(decoded, torch.full((2, 3, 136, 184), 0.7))


def test_pixels_beyond_the_last_cell_reach_the_encoder() -> None:
    vae, x = tiny_vae(), picture(71, 69)
    vae.enable_tiling(64, 64)
    changed = x.clone()
    changed[..., 70, 68] += 1
    assert not torch.equal(encode(vae, x), encode(vae, changed))


def test_batch_and_slices_give_what_single_pictures_give() -> None:
    vae, x, z = tiny_vae(), picture(72, 80, batch=3), latents(9, 10, batch=3)
    vae.enable_tiling(64)
    single = torch.cat([encode(vae, row[None]) for row in x]), torch.cat([vae.decode(row[None]).sample for row in z])
    for switch in (vae.disable_slicing, vae.enable_slicing):
        switch()
        torch.testing.assert_close(encode(vae, x), single[0])
        torch.testing.assert_close(vae.decode(z).sample, single[1])


def test_dtype_is_kept() -> None:
    vae = tiny_vae().to(torch.bfloat16)
    vae.enable_tiling(64)
    assert encode(vae, picture(72, 80).bfloat16()).dtype == torch.bfloat16
    assert vae.decode(latents(9, 10).bfloat16()).sample.dtype == torch.bfloat16


def test_quantisation_convolutions_are_applied() -> None:
    vae = tiny_vae(use_quant_conv=True, use_post_quant_conv=True)
    torch.nn.init.zeros_(vae.quant_conv.weight)
    torch.nn.init.constant_(vae.quant_conv.bias, 0.25)
    vae.enable_tiling(64)
    assert torch.equal(encode(vae, picture(72, 80)), torch.full((1, 32, 9, 10), 0.25))
    torch.nn.init.zeros_(vae.post_quant_conv.weight)
    z = latents(9, 10)
    assert torch.equal(vae.decode(z).sample, vae.decode(z + 1).sample)


def test_disable_tiling_gives_the_whole_back() -> None:
    vae, z = tiny_vae(), latents(12, 12)
    whole = vae.decode(z).sample
    vae.enable_tiling(64)
    tiled = vae.decode(z).sample
    vae.disable_tiling()
    assert torch.equal(vae.decode(z).sample, whole)
    assert not torch.equal(tiled, whole)


def test_named_methods_tile_without_the_switch() -> None:
    vae, x, z = tiny_vae(), picture(72, 80), latents(9, 10)
    vae.enable_tiling(64)
    expected = encode(vae, x), vae.decode(z).sample
    vae.disable_tiling()
    assert torch.equal(vae.tiled_encode(x).latent_dist.parameters, expected[0])
    assert torch.equal(vae.tiled_encode(x, return_dict=False)[0].parameters, expected[0])
    assert torch.equal(vae.tiled_decode(z).sample, expected[1])
    assert torch.equal(vae.tiled_decode(z, return_dict=False)[0], expected[1])


@pytest.mark.parametrize("size", [0, -8, 4, 100, 64.0])
def test_impossible_tile_sizes_raise(size: float) -> None:
    with pytest.raises(ValueError, match=f"`tile_size` is {size}; expected a multiple of 8"):
        tiny_vae().enable_tiling(size)


@pytest.mark.parametrize("stride", [0, -8, 4, 20, 72, 32.0])
def test_impossible_strides_raise(stride: float) -> None:
    vae = tiny_vae()
    with pytest.raises(ValueError, match=f"`tile_stride` is {stride} .* from 8 to 64"):
        vae.enable_tiling(64, stride)
    assert not vae.use_tiling


def test_released_sizes_are_the_defaults() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLFlux()
    assert sum(p.numel() for p in vae.parameters()) == 83_819_683
    assert vae.cell_size == 8


def test_save_and_load_between_both_classes(tmp_path: Path) -> None:
    stock, z = tiny_vae(AutoencoderKL), latents(4, 4)
    stock.save_pretrained(tmp_path / "stock")
    ours = AutoencoderKLFlux.from_pretrained(tmp_path / "stock")
    assert type(ours) is AutoencoderKLFlux
    assert torch.equal(ours.decode(z).sample, stock.decode(z).sample)
    ours.save_pretrained(tmp_path / "ours")
    for kind in (AutoencoderKLFlux, AutoencoderKL):
        loaded = kind.from_pretrained(tmp_path / "ours")
        assert loaded.config.block_out_channels == list(TINY["block_out_channels"])
        assert torch.equal(loaded.decode(z).sample, stock.decode(z).sample)
