"""The reference's VAE encoder and decoder at any width, with four resolution levels as in FLUX."""

import torch
from diffusers import AutoencoderKL
from torch import nn

from benchmarks.support.reference.boot import import_reference


flux_vae = import_reference("diffsynth.models.flux_vae")
converters = import_reference("diffsynth.utils.state_dict_converters.flux_vae")


class _Blocks:
    """Makes the reference's VAE blocks with the group count of a diffusers VAE."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def resnets(self, *channels: int) -> list[nn.Module]:
        pairs = zip(channels[:-1], channels[1:])
        return [flux_vae.ResnetBlock(i, o, groups=self.groups, eps=1e-6) for i, o in pairs]

    def middle(self, channels: int) -> list[nn.Module]:
        # The diffusers names belong to the variant whose attention projections are Linears.
        attention = flux_vae.VAEAttentionBlock(
            1, channels, channels, 1, norm_num_groups=self.groups, eps=1e-6, use_conv_attention=False
        )
        before, after = self.resnets(channels, channels, channels)
        return [before, attention, after]


def _empty(kind: type[nn.Module], vae: AutoencoderKL) -> nn.Module:
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    module.scaling_factor, module.shift_factor = vae.config.scaling_factor, vae.config.shift_factor
    module.conv_act = nn.SiLU()
    return module


def _load(module: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def reference_vae_encoder(vae: AutoencoderKL) -> nn.Module:
    """The reference's `FluxVAEEncoder` with the widths and the weights of `vae`."""
    a, b, c, d = vae.config.block_out_channels
    make = _Blocks(vae.config.norm_num_groups)
    encoder = _empty(flux_vae.FluxVAEEncoder, vae)
    encoder.conv_in = nn.Conv2d(3, a, 3, padding=1)
    blocks: list[nn.Module] = []
    for channels in ((a, a, a), (a, b, b), (b, c, c)):
        blocks += [*make.resnets(*channels), flux_vae.DownSampler(channels[-1], padding=0, extra_padding=True)]
    encoder.blocks = nn.ModuleList([*blocks, *make.resnets(c, d, d), *make.middle(d)])
    encoder.conv_norm_out = nn.GroupNorm(vae.config.norm_num_groups, d, eps=1e-6)
    encoder.conv_out = nn.Conv2d(d, 2 * vae.config.latent_channels, 3, padding=1)
    return _load(encoder, converters.FluxVAEEncoderStateDictConverterDiffusers(vae.state_dict()))


def reference_vae_decoder(vae: AutoencoderKL) -> nn.Module:
    """The reference's `FluxVAEDecoder` with the widths and the weights of `vae`."""
    a, b, c, d = vae.config.block_out_channels
    make = _Blocks(vae.config.norm_num_groups)
    decoder = _empty(flux_vae.FluxVAEDecoder, vae)
    decoder.conv_in = nn.Conv2d(vae.config.latent_channels, d, 3, padding=1)
    blocks: list[nn.Module] = make.middle(d)
    for channels in ((d, d, d, d), (d, c, c, c), (c, b, b, b)):
        blocks += [*make.resnets(*channels), flux_vae.UpSampler(channels[-1])]
    decoder.blocks = nn.ModuleList([*blocks, *make.resnets(b, a, a, a)])
    decoder.conv_norm_out = nn.GroupNorm(vae.config.norm_num_groups, a, eps=1e-6)
    decoder.conv_out = nn.Conv2d(a, 3, 3, padding=1)
    return _load(decoder, converters.FluxVAEDecoderStateDictConverterDiffusers(vae.state_dict()))
