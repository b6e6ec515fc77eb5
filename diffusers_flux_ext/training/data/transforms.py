"""One transform for all images of a sample: what is drawn for the target holds for its masks and control images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageEnhance

from ...inputs.checks import check_choice
from ..draws import Draws
from .resizing import cover, reference_resize


_CHANGES = ("brightness", "contrast", "saturation")
_ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a sample.

    Args:
        flip (`bool`): Whether to mirror it.
        across (`float`): Place of the crop between left and right, in [0, 1].
        down (`float`): Place of the crop between top and bottom, in [0, 1].
        brightness (`float`): Factor.
        contrast (`float`): Factor.
        saturation (`float`): Factor.
    """

    flip: bool = False
    across: float = 0.5
    down: float = 0.5
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0


@dataclass(frozen=True)
class Transform:
    """How images are brought to their bucket's size, and what is varied.

    Args:
        resize (`"cover"` or `"reference"`, defaults to `"cover"`):
            `"cover"`: scale until the size is covered, with Lanczos, and crop. `"reference"`: as the reference
            implementation does, with a bilinear filter, rounded sides and a centred crop, bit for bit.
        crop (`"center"` or `"random"`, defaults to `"center"`): Which part is kept.
        flip (`float`, defaults to 0.0): Share of mirrored samples, in [0, 1].
        brightness (`float`, defaults to 0.0): Factors are drawn from 1 - x to 1 + x, in [0, 1).
        contrast (`float`, defaults to 0.0): The same.
        saturation (`float`, defaults to 0.0): The same.
        color_columns (`tuple[str, ...]`, defaults to `("image",)`): Columns whose colours change.
        flip_columns (`tuple[str, ...]`, defaults to `()`):
            Columns of images with a size of their own, such as references, that are mirrored with the target.

    Raises:
        ValueError: if an option is out of range, or does not go with `resize="reference"`.
    """

    resize: Literal["cover", "reference"] = "cover"
    crop: Literal["center", "random"] = "center"
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    color_columns: tuple[str, ...] = ("image",)
    flip_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("`resize` of Transform", self.resize, ("cover", "reference"))
        check_choice("`crop` of Transform", self.crop, ("center", "random"))
        if not 0 <= self.flip <= 1:
            raise ValueError(f"`flip` of Transform must be in [0, 1], got {self.flip}.")
        for name in _CHANGES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` of Transform must be in [0, 1), got {getattr(self, name)}.")
        if self.resize == "reference" and self.crop != "center":
            raise ValueError("`resize='reference'` crops at the centre. Set `crop='center'` or `resize='cover'`.")

    @property
    def varies(self) -> bool:
        """Whether two draws can differ."""
        return self.crop == "random" or self.flip > 0 or any(getattr(self, name) > 0 for name in _CHANGES)

    def draw(self, draws: Draws, index: int, variant: int) -> Drawn:
        """Draw for a sample.

        Args:
            draws (`Draws`): The run's draws.
            index (`int`): The sample's number.
            variant (`int`): The epoch, or which of a sample's cached variants.

        Returns:
            `Drawn`
        """
        if not self.varies:
            return Drawn()
        flip, across, down, *factors = draws.uniform("data/transform", variant, index, shape=(6,)).tolist()
        changes = {name: 1 + (2 * u - 1) * getattr(self, name) for name, u in zip(_CHANGES, factors)}
        place = (across, down) if self.crop == "random" else (0.5, 0.5)
        return Drawn(flip < self.flip, *place, **changes)

    def apply(
        self, image: Image.Image, height: int, width: int, drawn: Drawn = Drawn(), column: str = "image"
    ) -> Image.Image:
        """Bring an image to a size.

        Args:
            image (`PIL.Image.Image`): In mode `"RGB"` or `"L"`.
            height (`int`): Pixels.
            width (`int`): Pixels.
            drawn (`Drawn`): What was drawn for its sample.
            column (`str`, defaults to `"image"`): Its column, which says whether its colours change.

        Returns:
            `PIL.Image.Image` of this size and mode.
        """
        if self.resize == "reference":
            image = reference_resize(image, height, width)
        else:
            image = cover(image, height, width, drawn.across, drawn.down)
        return self.apply_unsized(image, drawn, column, flips=True)

    def apply_unsized(self, image: Image.Image, drawn: Drawn, column: str, flips: bool | None = None) -> Image.Image:
        """Mirror and colour an image that keeps its size, as far as its column takes part.

        Args:
            image (`PIL.Image.Image`): The image.
            drawn (`Drawn`): What was drawn for its sample.
            column (`str`): Its column.
            flips (`bool`, *optional*): Whether it takes part in flips; by default if `flip_columns` names it.

        Returns:
            `PIL.Image.Image` of the same size.
        """
        if drawn.flip and (column in self.flip_columns if flips is None else flips):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if column in self.color_columns:
            for name in _CHANGES:
                if getattr(drawn, name) != 1.0:
                    image = _ENHANCERS[name](image).enhance(getattr(drawn, name))
        return image
