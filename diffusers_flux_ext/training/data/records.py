"""What a data set is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from .buckets import Size, Sizes
from .sources.row import Source


ALIGNED_COLUMNS = (
    "controlnet_image",
    "controlnet_inpaint_mask",
    "eligen_entity_masks",
    "flex_control_image",
    "flex_inpaint_image",
    "flex_inpaint_mask",
    "flux_fill_image",
    "flux_fill_mask",
)
"""Columns of images that lie over the target, by the reference implementation's names; their crop is the target's."""


@dataclass(frozen=True)
class Columns:
    """What the file columns of a data set are for. Others that are asked for are images with a size of their own.

    Args:
        target (`str`, defaults to `"image"`): The image that is learnt.
        aligned (`tuple[str, ...]`): Images that lie over the target, which are cropped and mirrored with it.
        masks (`tuple[str, ...]`): Which columns hold masks; by default those whose name has `"mask"` in it.
        loss_mask (`str`, *optional*, defaults to `"mask"`): The aligned mask of what counts in the loss.
    """

    target: str = "image"
    aligned: tuple[str, ...] = ALIGNED_COLUMNS
    masks: tuple[str, ...] | None = None
    loss_mask: str | None = "mask"

    def is_mask(self, column: str) -> bool:
        """Whether a column holds masks."""
        return "mask" in column if self.masks is None else column in self.masks or column == self.loss_mask

    def is_sized(self, column: str) -> bool:
        """Whether a column's images have the target's size."""
        return column in (self.target, self.loss_mask) or column in self.aligned


@dataclass(frozen=True)
class Entry:
    """A source with its options.

    Args:
        source (`Source`): Where the rows come from.
        repeats (`int`, defaults to 1): How often an epoch visits each sample.
        weight (`float`, defaults to 1.0): Weight of its samples in the loss.
        prefix (`str`, defaults to `""`): Put before each caption.
        trigger (`str`, *optional*): Replaces `[trigger]` in all texts; put before captions that have neither.
        sizes (`Sizes`, *optional*): Its own rule of sizes.
        preserved (`bool`, defaults to `False`): Whether the base's own prediction is the target, as regularisation.
        allow_flip (`bool`, defaults to `True`): Whether its images may be mirrored.

    Raises:
        ValueError: if a number is out of range.
    """

    source: Source
    repeats: int = 1
    weight: float = 1.0
    prefix: str = ""
    trigger: str | None = None
    sizes: Sizes | None = None
    preserved: bool = False
    allow_flip: bool = True

    def __post_init__(self) -> None:
        if self.repeats < 1 or not self.weight >= 0:
            raise ValueError(
                f"`repeats` of Entry must be at least 1 and `weight` not negative, got {self.repeats} and "
                f"{self.weight}."
            )


@dataclass(frozen=True)
class Item:
    """A sample of the data set: a row at one of its sizes. An epoch may visit a row as several samples.

    Args:
        entry (`int`): Number of the source.
        row (`int`): Number of the row in the source.
        size (`Size`): Height and width in pixels.
        repeat (`int`): Which of the source's repeats it is.
    """

    entry: int
    row: int
    size: Size
    repeat: int = 0


@dataclass(frozen=True, eq=False)
class LoadedSample:
    """A sample whose files are open, before anything is encoded.

    Args:
        index (`int`): Its number in the data set.
        name (`str`): Its row, for errors.
        image (`PIL.Image.Image`): The target, of the bucket's size.
        row (`Mapping[str, Any]`): What conditions read: values, images in the place of file columns, or `None`.
        texts (`Sequence[str]`): All its captions.
        mask (`PIL.Image.Image`, *optional*): What counts in the loss.
        weight (`float`): Weight of its loss.
        preserved (`bool`): Whether the base's own prediction is the target.
        strength (`float`): How strongly a slider acts on it, in [-1, 1].
    """

    index: int
    name: str
    image: Image.Image
    row: Mapping[str, Any]
    texts: Sequence[str]
    mask: Image.Image | None = None
    weight: float = 1.0
    preserved: bool = False
    strength: float = 1.0
