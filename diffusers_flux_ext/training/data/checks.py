"""Checks of all samples before the start: missing and broken files, sizes, captions."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ...checkpoints.messages import shorten
from .bad_samples import BadSamples
from .captions import TRIGGER
from .dataset import TrainingData
from .flips import check_flips
from .images import Header, load_image
from .resizing import aspect
from .sources.row import Row


_ASPECT_TOLERANCE = 0.05


@dataclass(frozen=True)
class DataReport:
    """What a check found.

    Args:
        rows (`int`): Rows of all sources.
        samples (`int`): Samples of an epoch, with all sizes and repeats.
        skipped (`tuple[str, ...]`): Problems of rows that were left out.
        modes (`dict[str, int]`): Targets by pillow's mode.
        sizes (`dict[tuple[int, int], int]`): Samples by height and width in pixels.
        enlarged (`int`): Samples that are larger than their file.
    """

    rows: int
    samples: int
    skipped: tuple[str, ...]
    modes: dict[str, int]
    sizes: dict[tuple[int, int], int]
    enlarged: int

    def __str__(self) -> str:
        lines = [f"{self.rows} rows, {self.samples} samples in an epoch, {len(self.skipped)} rows left out"]
        lines += [f"{count:6d} samples of {height} x {width} pixels" for (height, width), count in self.sizes.items()]
        lines.append("modes: " + ", ".join(f"{mode} {count}" for mode, count in self.modes.items()))
        if self.enlarged:
            lines.append(f"{self.enlarged} samples are enlarged, which blurs them.")
        return "\n".join(lines)


def check_data(data: TrainingData, bad: BadSamples | None = None, decode: bool = False) -> DataReport:
    """Check all rows of a data set, and number its samples.

    Args:
        data (`TrainingData`): The data; the samples of good rows are added to it, in the order of sources and rows.
        bad (`BadSamples`, *optional*): What to do about bad rows; by default to stop.
        decode (`bool`, defaults to `False`): Whether to decode all images, which finds truncated ones, too.

    Returns:
        `DataReport`

    Raises:
        ValueError: if there are bad rows that may not be skipped, with the first ten and their file names; if no row
            has one of the columns; if flips contradict a text; or if no sample is left.
    """
    bad, modes, headers, texts = bad or BadSamples(), Counter[str](), {}, []
    rows, unsized, columns = 0, set[str](), set[str]()
    data.items.clear()
    for entry, index, row in _readable(data, bad):
        rows += 1
        if row is None:
            continue
        columns |= row.values.keys() | row.files.keys()
        try:
            captions, others = data.texts(entry, index, row), _other_texts(data, row)
            header = _check_files(data, entry, row, decode)
            data.strength_of(row)
            data.add(entry, index, header)
        except (ValueError, OSError) as error:
            bad.problems.append(_named(row.name, error))
            continue
        modes[header.mode] += 1
        headers[entry, index] = header
        unsized |= {column for column in data.needed if column in row.files and not data.columns.is_sized(column)}
        texts += [(row.name, text) for text in (*captions, *others)]
    _check_columns(data, columns)
    bad.judge(rows)
    if not data.items:
        raise ValueError("No sample is left.")
    check_flips(data.transform, texts, unsized)
    sizes = Counter(item.size for item in data.items)
    enlarged = sum(_is_enlarged(item.size, headers[item.entry, item.row]) for item in data.items)
    return DataReport(rows, len(data), tuple(bad.problems), dict(modes), dict(sizes.most_common()), enlarged)


def _check_columns(data: TrainingData, columns: set[str]) -> None:
    captions = () if data.captions.allow_missing else data.captions.columns
    strength = () if data.strength is None else (data.strength,)
    missing = sorted({data.columns.target, *data.needed, *captions, *strength} - columns)
    if columns and missing:
        near = difflib.get_close_matches(missing[0], columns, 1)
        raise ValueError(
            f"No row has the column {missing[0]!r}{f'; did you mean {near[0]!r}?' if near else '.'} There are "
            f"{sorted(columns)}."
        )


def _readable(data: TrainingData, bad: BadSamples) -> Iterator[tuple[int, int, Row | None]]:
    for entry, options in enumerate(data.entries):
        for index in range(len(options.source)):
            try:
                yield entry, index, data.row(entry, index)
            except (ValueError, OSError) as error:
                bad.problems.append(_named(options.source.name, error))
                yield entry, index, None


def _named(name: str, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(name) else f"{name}: {text}"


def _check_files(data: TrainingData, entry: int, row: Row, decode: bool) -> Header:
    columns = data.columns
    count = len(row.references(columns.target))
    if count != 1:
        raise ValueError(f"{row.name} has {count} files in `{columns.target}`; expected 1.")
    header = data.header(entry, row, columns.target, row.references(columns.target)[0])
    used = [each for each in (*data.needed, columns.loss_mask) if each in row.files and each != columns.target]
    for column in used:
        for reference in row.references(str(column)):
            other = data.header(entry, row, str(column), reference)
            if columns.is_sized(str(column)):
                _check_aspect(row, str(column), reference, other, header)
    if decode:
        _decode(data, entry, row, [columns.target, *map(str, used)])
    return header


def _check_aspect(row: Row, column: str, reference: str, found: Header, target: Header) -> None:
    if abs(aspect(found.height, found.width) - aspect(target.height, target.width)) > math.log1p(_ASPECT_TOLERANCE):
        raise ValueError(
            f"{row.name}: `{reference}` of `{column}` has {found.width} x {found.height} pixels, the target "
            f"{target.width} x {target.height}. They must have the same proportions, since one lies over the other."
        )


def _decode(data: TrainingData, entry: int, row: Row, columns: list[str]) -> None:
    for column in columns:
        for reference in row.references(column):
            load_image(data.entries[entry].source.open(reference), f"{row.name}: `{reference}`", data.images)


def _other_texts(data: TrainingData, row: Row) -> list[str]:
    """Return the texts that conditions read, such as those of entities."""
    found: list[str] = []
    for column in data.needed:
        value = row.values.get(column)
        listed = value if isinstance(value, list) else [value]
        found += [text for text in listed if isinstance(text, str)]
    for text in found:
        if TRIGGER in text:
            raise ValueError(f"{row.name}: {shorten(text)!r} has {TRIGGER}, but the source has no `trigger`.")
    return found


def _is_enlarged(size: tuple[int, int], header: Header) -> bool:
    return size[0] > header.height or size[1] > header.width
