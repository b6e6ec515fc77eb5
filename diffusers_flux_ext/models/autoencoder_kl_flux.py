"""`AutoencoderKL` with tiling that works at every image size, has no narrow tiles and bounds the memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin

from ..checkpoints.hub import HUB_ARGUMENTS, local_file
from ..checkpoints.stock_config import StockConfigMixin
from ..checkpoints.vae import read_vae
from ..former_arguments import former_arguments
from .tiling import TileGrid


# diffusers looks up `ModelMixin` in the module that defines a saved model.
__all__ = ["AutoencoderKLFlux", "ModelMixin"]

DEFAULT_TILE_SIZE = 1024


class AutoencoderKLFlux(StockConfigMixin, AutoencoderKL):
    r"""The FLUX.1 autoencoder: [`~diffusers.AutoencoderKL`] with a different way of tiling.

    Tile size and stride are given in image pixels, for encoding and decoding alike. As few tiles as possible, equally
    large to within one latent cell, just cover the image, so that none is narrow, and nothing is computed twice beyond
    the overlap. Overlaps are blended with weights that fall linearly towards a tile's inner borders, over
    half a stride. Tiles are processed one by one into an output buffer, so peak
    memory is that of one tile plus the image. An image that fits into a tile is processed whole, and without
    tiling the model is the base class. Weights and config are those of `AutoencoderKL`; either class loads the other's
    folders and takes the other's config, without changing its values.

    The blending is that of DiffSynth-Studio, except that it also covers positions which a stride does not reach, and
    that tiles are equal, and that weights do not fall towards the borders of the image (see `ramp_image_borders` of
    [`enable_tiling`]).

    Args:
        in_channels (`int`, *optional*, defaults to 3):
            Channels of the image.
        out_channels (`int`, *optional*, defaults to 3):
            Channels of the decoded image.
        down_block_types (`tuple[str, ...]`, *optional*):
            Encoder blocks, one per resolution; four `"DownEncoderBlock2D"` by default.
        up_block_types (`tuple[str, ...]`, *optional*):
            Decoder blocks, one per resolution; four `"UpDecoderBlock2D"` by default.
        block_out_channels (`tuple[int, ...]`, *optional*, defaults to `(128, 256, 512, 512)`):
            Channels of the blocks. `n` blocks make a latent cell of `2 ** (n - 1)` pixels.
        layers_per_block (`int`, *optional*, defaults to 2):
            Residual layers of an encoder block; a decoder block has one more.
        act_fn (`str`, *optional*, defaults to `"silu"`):
            Activation.
        latent_channels (`int`, *optional*, defaults to 16):
            Channels of the latents.
        norm_num_groups (`int`, *optional*, defaults to 32):
            Groups of the group norms.
        sample_size (`int`, *optional*, defaults to 1024):
            Image size in training; not used by the tiling of this class.
        scaling_factor (`float`, *optional*, defaults to 0.3611):
            Applied by pipelines: `(latents - shift_factor) * scaling_factor`.
        shift_factor (`float`, *optional*, defaults to 0.1159):
            See `scaling_factor`.
        latents_mean (`tuple[float, ...]`, *optional*):
            Channel means, for pipelines that use them.
        latents_std (`tuple[float, ...]`, *optional*):
            Channel deviations, for pipelines that use them.
        force_upcast (`bool`, *optional*, defaults to `True`):
            Whether pipelines should run the model in float32.
        use_quant_conv (`bool`, *optional*, defaults to `False`):
            Whether a 1x1 convolution follows the encoder.
        use_post_quant_conv (`bool`, *optional*, defaults to `False`):
            Whether a 1x1 convolution precedes the decoder.
        mid_block_add_attention (`bool`, *optional*, defaults to `True`):
            Whether the middle blocks have attention.
    """

    stock_class = AutoencoderKL

    config: Any

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4,
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 16,
        norm_num_groups: int = 32,
        sample_size: int = 1024,
        scaling_factor: float = 0.3611,
        shift_factor: float | None = 0.1159,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = False,
        use_post_quant_conv: bool = False,
        mid_block_add_attention: bool = True,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__(**arguments)
        self.hand_on_defaults()
        self._set_tiles(DEFAULT_TILE_SIZE, None, ramp_image_borders=False)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | Path | Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        config: str | Path | None = None,
        subfolder: str | None = None,
        **overrides: Any,
    ) -> AutoencoderKLFlux:
        """Make a model from one file, alone or beside other models; nothing but links is fetched.

        Args:
            pretrained_model_link_or_path_or_dict (`str`, `Path` or `Mapping[str, torch.Tensor]`):
                A safetensors file with the names of diffusers, Black Forest Labs (`ae.safetensors`) or ComfyUI, a link
                to one on the Hub, or a state dict.
            torch_dtype (`torch.dtype`, *optional*): Data type of the model; that of each tensor by default.
            device (`str` or `torch.device`, *optional*): Device of the model; CPU by default.
            dtype (`torch.dtype`, *optional*): The newer name of `torch_dtype`.
            config (`str` or `Path`, *optional*): A folder or repository whose config replaces the inferred one.
            subfolder (`str`, *optional*): The config's subfolder, such as `"vae"`.
            overrides:
                Arguments of the constructor that replace inferred ones, such as `norm_num_groups=4`; and `cache_dir`,
                `force_download`, `local_files_only`, `token` and `revision` for links.

        Returns:
            `AutoencoderKLFlux`: in eval mode.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds no autoencoder, or a broken one; if `norm_num_groups` is needed.
            TypeError: If an override is not an argument of the constructor.
        """
        hub = {name: overrides.pop(name) for name in HUB_ARGUMENTS if name in overrides}
        source = pretrained_model_link_or_path_or_dict
        if not isinstance(source, Mapping):
            source = local_file(source, hub)
        if config is not None:
            hub.pop("revision", None)
            loaded = cls.load_config(config, subfolder=subfolder, **hub)
            overrides = {**{name: value for name, value in loaded.items() if name[0] != "_"}, **overrides}
        return read_vae(source, cls, torch_dtype=dtype or torch_dtype, device=device, **overrides)

    @property
    def cell_size(self) -> int:
        """Pixels along the side of one latent cell: 8 for FLUX.1."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    @former_arguments(ramp_picture_borders="ramp_image_borders")
    def enable_tiling(
        self,
        tile_size: int = DEFAULT_TILE_SIZE,
        tile_stride: int | None = None,
        ramp_image_borders: bool = False,
    ) -> None:
        """Encode and decode images larger than a tile in overlapping tiles.

        Args:
            tile_size (`int`, *optional*, defaults to 1024):
                Largest side of a tile in image pixels, a multiple of [`cell_size`]. Memory grows with its square;
                smaller tiles see less of the image, which shows as slight differences in tone.
            tile_stride (`int`, *optional*):
                `tile_size` less the overlap of neighbouring tiles, in image pixels, a multiple of [`cell_size`], at
                most `tile_size`. Three quarters of `tile_size` by default. Smaller strides blend over a wider overlap
                and take longer.
            ramp_image_borders (`bool`, *optional*, defaults to `False`):
                Reproduce DiffSynth-Studio: tiles of full size, the last one moved inward, and weights that fall
                towards the borders of the image too. It takes longer, and leaves seams where an overlap meets the
                border of the image.

        Raises:
            ValueError: If the size or the stride is impossible.
        """
        self._set_tiles(tile_size, tile_stride, ramp_image_borders)
        self.use_tiling = True

    def _set_tiles(self, tile_size: int, tile_stride: int | None, ramp_image_borders: bool) -> None:
        cell = self.cell_size
        if not isinstance(tile_size, int) or tile_size < cell or tile_size % cell:
            raise ValueError(
                f"`tile_size` is {tile_size}; expected a multiple of {cell} image pixels, at least {cell}."
            )
        stride = max(tile_size * 3 // 4 // cell, 1) * cell if tile_stride is None else tile_stride
        if not isinstance(stride, int) or not cell <= stride <= tile_size or stride % cell:
            raise ValueError(
                f"`tile_stride` is {tile_stride} for `tile_size={tile_size}`; expected a multiple of {cell} image "
                f"pixels from {cell} to {tile_size}. A larger stride would leave holes between tiles."
            )
        # The base class uses these to decide whether an image is larger than a tile.
        self.tile_sample_min_size = tile_size
        self.tile_latent_min_size = tile_size // cell
        self.tile_overlap_factor = 1 - stride / tile_size
        self.tile_sample_stride = stride
        self.tile_ramp_image_borders = ramp_image_borders

    def _grid(self, height: int, width: int, scale: int) -> TileGrid:
        return TileGrid(
            height=height,
            width=width,
            tile=self.tile_latent_min_size,
            stride=self.tile_sample_stride // self.cell_size,
            scale=scale,
            ramp_outer=self.tile_ramp_image_borders,
        )

    def _encode_whole(self, x: torch.Tensor) -> torch.Tensor:
        moments = self.encoder(x)
        return moments if self.quant_conv is None else self.quant_conv(moments)

    def _decode_whole(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def _tiled_encode(self, x: torch.Tensor) -> torch.Tensor:
        cell = self.cell_size
        height, width = x.shape[-2] // cell, x.shape[-1] // cell

        def pixels(cells: slice, count: int) -> slice:
            # Pixels beyond the last whole cell belong to the last tile, as they do to an untiled image.
            return slice(cells.start * cell, None if cells.stop == count else cells.stop * cell)

        return self._grid(height, width, scale=1).blend(
            lambda rows, columns: self._encode_whole(x[..., pixels(rows, height), pixels(columns, width)])
        )

    def tiled_encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode images in tiles whether or not tiling is enabled. [`encode`] does so where it is enabled and useful.

        Args:
            x (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
                Images in [-1, 1].
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return an `AutoencoderKLOutput` instead of a tuple.

        Returns:
            `AutoencoderKLOutput` or `tuple`: The latent distribution.
        """
        posterior = DiagonalGaussianDistribution(self._tiled_encode(x))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def tiled_decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode latents in tiles whether or not tiling is enabled. [`decode`] does so where it is enabled and useful.

        Args:
            z (`torch.Tensor` of shape `(batch_size, latent_channels, height, width)`):
                Unscaled latents.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a `DecoderOutput` instead of a tuple.

        Returns:
            `DecoderOutput` or `tuple`: Images of shape
            `(batch_size, channels, height * cell_size, width * cell_size)`.
        """
        height, width = z.shape[-2:]
        sample = self._grid(height, width, scale=self.cell_size).blend(
            lambda rows, columns: self._decode_whole(z[..., rows, columns])
        )
        return DecoderOutput(sample=sample) if return_dict else (sample,)
