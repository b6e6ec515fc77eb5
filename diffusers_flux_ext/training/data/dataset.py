"""The training data: several sources, each with its options, as one numbered list of samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ...checkpoints.messages import shorten
from ..draws import Draws
from .buckets import ReferenceSizes, Size, Sizes
from .captions import TRIGGER, Captions
from .flips import check_flips
from .images import Header, ImageOptions, load_image, load_mask, read_header
from .records import Columns, Entry, Item, LoadedSample
from .sources.row import Row, Source
from .transforms import Drawn, Transform


HEADER_BYTES = 256 * 1024
"""How much of a JPEG file is read for its header."""

JPEG = b"\xff\xd8"


@dataclass(eq=False)
class TrainingData:
    """Several sources as one numbered list of samples. It can be sent to other processes.

    Args:
        entries (`Sequence[Entry]`): The sources.
        draws (`Draws`): The run's draws.
        sizes (`Sizes`): The rule of sizes of sources that have none.
        transform (`Transform`): How images are brought to their size, and what is varied.
        captions (`Captions`): How captions are read and varied.
        columns (`Columns`): What the file columns are for.
        needed (`tuple[str, ...]`): Columns that conditions read; they get no others, whose files are not opened.
        images (`ImageOptions`): How files are read.
        variants (`int`, defaults to 1):
            How many variants of a sample a varying transform draws; visits take them in turn.
        opted_out (`tuple[str, ...]`): What else may not be mirrored, such as names of conditions.
        strength (`str`, *optional*): The column that says how strongly a slider acts on a sample, in [-1, 1].
    """

    entries: Sequence[Entry]
    draws: Draws
    sizes: Sizes = field(default_factory=ReferenceSizes)
    transform: Transform = field(default_factory=Transform)
    captions: Captions = field(default_factory=Captions)
    columns: Columns = field(default_factory=Columns)
    needed: tuple[str, ...] = ()
    images: ImageOptions = field(default_factory=ImageOptions)
    variants: int = 1
    opted_out: tuple[str, ...] = ()
    strength: str | None = None

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError("`entries` of TrainingData is empty. Give at least one source.")
        if self.variants < 1:
            raise ValueError(f"`variants` of TrainingData must be at least 1, got {self.variants}.")
        self.items: list[Item] = []
        opted_out = [*self.opted_out, *(entry.source.name for entry in self.entries if not entry.allow_flip)]
        check_flips(self.transform, opted_out=opted_out)

    def __len__(self) -> int:
        return len(self.items)

    def row(self, entry: int, index: int) -> Row:
        """Return a row of a source, with `[trigger]` replaced in its values.

        Args:
            entry (`int`): Number of the source.
            index (`int`): Number of the row.

        Returns:
            `Row`
        """
        source, trigger = self.entries[entry].source, self.entries[entry].trigger
        row = source.row(index)
        if trigger is None:
            return row
        return Row(row.name, {name: _filled(value, trigger) for name, value in row.values.items()}, row.files)

    def texts(self, entry: int, index: int, row: Row) -> list[str]:
        """Return all captions of a row.

        Args:
            entry (`int`): Number of the source.
            index (`int`): Number of the row.
            row (`Row`): The row.

        Returns:
            `list[str]`: see [`Captions.variants`], whose errors it raises.
        """
        options = self.entries[entry]
        number = _row_number(entry, index)
        return self.captions.variants(row.name, row.values, self.draws, number, options.prefix, options.trigger)

    def strength_of(self, row: Row) -> float:
        """Return how strongly a slider acts on a row.

        Args:
            row (`Row`): The row.

        Returns:
            `float`: in [-1, 1]; 1 if there is no column of strengths.

        Raises:
            ValueError: if the row has no number in this range.
        """
        if self.strength is None:
            return 1.0
        value: Any = row.values.get(self.strength)
        # Tables of text, such as csv, hold numbers as texts.
        with suppress(TypeError, ValueError):
            if not isinstance(value, bool) and -1 <= float(value) <= 1:
                return float(value)
        raise ValueError(
            f"{row.name}: the strength `{self.strength}` must be a number from -1 to 1, got {shorten(repr(value))}."
        )

    def add(self, entry: int, index: int, header: Header) -> None:
        """Add the samples of a row, at all its sizes and repeats.

        Args:
            entry (`int`): Number of the source.
            index (`int`): Number of the row.
            header (`Header`): Of its target.

        Raises:
            ValueError: if the image is too small.
        """
        options = self.entries[entry]
        rule = options.sizes or self.sizes
        for size in rule.sizes(header.height, header.width):
            self.items += [Item(entry, index, size, repeat) for repeat in range(options.repeats)]

    def variant(self, index: int, epoch: int) -> int:
        """Return which variant of a sample a visit takes.

        Args:
            index (`int`): The sample's number.
            epoch (`int`): The epoch.

        Returns:
            `int`: the repeats of a row take different ones, as far as there are enough.
        """
        item = self.items[index]
        return (epoch * self.entries[item.entry].repeats + item.repeat) % self.variants

    def drawn(self, item: Item, variant: int) -> Drawn:
        """Return what the transform draws for a variant of a sample; repeats and sizes of a row share it."""
        return self.transform.draw(self.draws, _row_number(item.entry, item.row), variant)

    def load(self, index: int, variant: int = 0) -> LoadedSample:
        """Open the files of a sample.

        Args:
            index (`int`): Its number.
            variant (`int`, defaults to 0): Which variant of the transform.

        Returns:
            `LoadedSample`

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is broken, or a caption is missing; the message names the row.
        """
        return self.load_item(self.items[index], variant, index)

    def load_item(self, item: Item, variant: int = 0, index: int = 0) -> LoadedSample:
        """Open the files of a sample that is not numbered, or of the number `index`; see [`load`]."""
        entry, row = self.entries[item.entry], self.row(item.entry, item.row)
        opened = _Opener(self, entry.source, row, item.size, self.drawn(item, variant))
        mask = self.columns.loss_mask
        return LoadedSample(
            index,
            row.name,
            opened(self.columns.target)[0],
            opened.values(),
            self.texts(item.entry, item.row, row),
            opened(mask)[0] if mask is not None and row.references(mask) else None,
            entry.weight,
            entry.preserved,
            self.strength_of(row),
        )

    def header(self, entry: int, row: Row, column: str, reference: str) -> Header:
        """Read the header of a file; raise errors as [`load`] does."""
        source, name = self.entries[entry].source, f"{row.name}: `{reference}`"
        start = source.open(reference, HEADER_BYTES)
        # Other formats may say at the end of the file how they are turned, or how many frames they have.
        if start.startswith(JPEG):
            with suppress(ValueError):
                return read_header(start, name, self.images)
        content = source.open(reference) if len(start) == HEADER_BYTES else start
        return read_header(content, name, self.images)


@dataclass(frozen=True)
class _Opener:
    data: TrainingData
    source: Source
    row: Row
    size: Size
    drawn: Drawn

    def __call__(self, column: str) -> list[Image.Image]:
        if not self.row.references(column):
            raise ValueError(f"{self.row.name} has no file in the column `{column}`.")
        return [self._open(column, each) for each in self.row.references(column)]

    def values(self) -> dict[str, Any]:
        # Nothing but what was declared, because the cache's entries depend on that alone.
        values = {column: self.row.values.get(column) for column in self.data.needed}
        for column in self.data.needed:
            if column in self.row.files:
                images = self(column)
                values[column] = images[0] if isinstance(self.row.files[column], str) else images
        return values

    def _open(self, column: str, reference: str) -> Image.Image:
        options, transform = self.data.images, self.data.transform
        read = load_mask if self.data.columns.is_mask(column) else load_image
        image = read(self.source.open(reference), f"{self.row.name}: `{reference}`", options)
        if self.data.columns.is_sized(column):
            return transform.apply(image, *self.size, self.drawn, column)
        image = transform.apply_unsized(image, self.drawn, column)
        if transform.resize == "reference":
            # The reference implementation gives every file its own size by the rule of its target, or the fixed size.
            rule = self.data.sizes
            size = rule.sizes(image.height, image.width)[0] if isinstance(rule, ReferenceSizes) else self.size
            image = transform.apply(image, *size, column="")
        return image


def _filled(value: Any, trigger: str) -> Any:
    if isinstance(value, str):
        return value.replace(TRIGGER, trigger)
    if isinstance(value, list):
        return [_filled(each, trigger) for each in value]
    return value


def _row_number(entry: int, row: int) -> int:
    return entry * 2**40 + row
