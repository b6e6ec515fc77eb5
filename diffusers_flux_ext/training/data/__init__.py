"""From files to samples and batches: sources, images, captions, buckets, checks, a cache and a loader."""

from .bad_samples import BadSamples
from .batches import BatchPlan, batches, describe_buckets
from .buckets import FreeBuckets, ListedBuckets, ReferenceSizes
from .cache import CachedSamples, EncodeOptions, cache_samples, encode_sample
from .captions import Captions
from .checks import DataReport, check_data
from .dataset import TrainingData
from .example import write_example_data
from .images import ImageOptions, load_image, load_mask
from .loader import SampleBatch, SampleLoader, stack_samples
from .records import Columns, Entry, LoadedSample
from .samples import EncodedSamples, Samples
from .sources import (
    FolderSource,
    ParquetSource,
    Row,
    SavedDatasetSource,
    Source,
    TableSource,
    WebDatasetSource,
)
from .transforms import Transform
from .visits import Batch, Update, Visit


__all__ = [
    "BadSamples",
    "Batch",
    "BatchPlan",
    "CachedSamples",
    "Captions",
    "Columns",
    "DataReport",
    "EncodeOptions",
    "EncodedSamples",
    "Entry",
    "FolderSource",
    "FreeBuckets",
    "ImageOptions",
    "ListedBuckets",
    "LoadedSample",
    "ParquetSource",
    "ReferenceSizes",
    "Row",
    "SampleBatch",
    "SampleLoader",
    "Samples",
    "SavedDatasetSource",
    "Source",
    "TableSource",
    "TrainingData",
    "Transform",
    "Update",
    "Visit",
    "WebDatasetSource",
    "batches",
    "cache_samples",
    "check_data",
    "describe_buckets",
    "encode_sample",
    "load_image",
    "load_mask",
    "stack_samples",
    "write_example_data",
]
