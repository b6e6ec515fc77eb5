"""Where training takes its samples from: a cache, or files that are encoded as they come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from ..batch import TrainingSample
from .cache.encoding import EncodeOptions, MakeConditions, Prompt, encode_images, encode_prompt
from .dataset import TrainingData
from .images import Header
from .records import LoadedSample


class Samples(Protocol):
    """Numbered samples, fetched in any process and finished in the one that has the models."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def key(self, index: int) -> Hashable:
        """Return the bucket of a sample."""

    def texts(self, index: int) -> list[str]:
        """Return all captions of a sample, without the empty one."""

    def fetch(self, index: int, epoch: int, texts: Sequence[str]) -> Any:
        """Return what a loader's process can do for a visit of a sample.

        Args:
            index (`int`): The sample's number.
            epoch (`int`): Which visit.
            texts (`Sequence[str]`): The captions that are needed.
        """

    def finish(self, fetched: Any, texts: Sequence[str]) -> TrainingSample:
        """Return the sample of what `fetch` returned.

        Args:
            fetched (`Any`): What `fetch` returned.
            texts (`Sequence[str]`): The captions that are needed.
        """


class EncodedSamples:
    """Samples that are encoded at each visit. They equal cached ones, in float32 bit for bit.

    Args:
        data (`TrainingData`): The data, after [`check_data`].
        pipe (`FluxPipeline`): Gives the VAE, the text encoders and what the conditions need.
        make_conditions (`MakeConditions`): Makes the conditions of a row.
        options (`EncodeOptions`): What is computed.
        kept_prompts (`int`, defaults to 64): How many encoded captions to keep in memory, 4 MB each.
    """

    def __init__(
        self,
        data: TrainingData,
        pipe: Any,
        make_conditions: MakeConditions,
        options: EncodeOptions = EncodeOptions(),
        kept_prompts: int = 64,
    ) -> None:
        self.data, self.pipe, self.make_conditions, self.options = data, pipe, make_conditions, options
        self.kept_prompts = kept_prompts
        self._prompts: OrderedDict[str, Prompt] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Loaders' processes open files; the models stay where they are.
        return {**self.__dict__, "pipe": None, "make_conditions": None, "_prompts": OrderedDict()}

    def __len__(self) -> int:
        return len(self.data)

    def key(self, index: int) -> Hashable:
        """Return a bucket that fixes the shapes of what conditions encode.

        Args:
            index (`int`): The sample's number.

        Returns:
            `Hashable`: size, text length, whether there is a mask, and of each column that conditions read the number
            of its entries and the sizes of its images.
        """
        item, data = self.data.items[index], self.data
        row = data.row(item.entry, item.row)
        mask = data.columns.loss_mask
        shapes = []
        for column in data.needed:
            value = row.values.get(column)
            sizes: list[Any] = [len(value) if isinstance(value, list) else value is not None]
            for reference in row.references(column):
                free = not data.columns.is_sized(column)
                sizes.append(_sides(data.header(item.entry, row, column, reference)) if free else item.size)
            shapes.append((column, *sizes))
        return *item.size, (self.options.text_length,), mask is None or not row.references(mask), tuple(shapes)

    def texts(self, index: int) -> list[str]:
        """Return all captions of a sample, without the empty one."""
        item = self.data.items[index]
        return self.data.texts(item.entry, item.row, self.data.row(item.entry, item.row))

    def fetch(self, index: int, epoch: int, texts: Sequence[str]) -> LoadedSample:
        """Open the files of a sample."""
        return self.data.load(index, self.data.variant(index, epoch))

    def finish(self, fetched: Any, texts: Sequence[str]) -> TrainingSample:
        """Encode an opened sample."""
        prompts = {text: self._prompt(text) for text in texts}
        return encode_images(self.pipe, self.make_conditions, fetched, prompts, self.options)

    def sample(self, index: int, epoch: int = 0, texts: Sequence[str] | None = None) -> TrainingSample:
        """Encode a sample; arguments as of [`CachedSamples.sample`]."""
        wanted = ["", *self.texts(index)] if texts is None else texts
        return self.finish(self.fetch(index, epoch, wanted), wanted)

    def _prompt(self, text: str) -> Prompt:
        if text not in self._prompts:
            self._prompts[text] = encode_prompt(self.pipe, text, self.options)
            while len(self._prompts) > self.kept_prompts:
                self._prompts.popitem(last=False)
        return self._prompts[text]


def _sides(header: Header) -> tuple[int, int]:
    return header.height, header.width
