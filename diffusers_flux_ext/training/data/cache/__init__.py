"""Stage one: everything that frozen models compute of a sample, once, in files that training reads instead."""

from .cached import CachedSamples
from .encoding import EncodeOptions, encode_sample
from .stage import cache_samples


__all__ = ["CachedSamples", "EncodeOptions", "cache_samples", "encode_sample"]
