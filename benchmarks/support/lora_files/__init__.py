"""LoRA files of every known format with known changes, for tiny models, and files that must be refused.

Written from the formats' description alone and independent of the package, so that they can check it.
"""

from benchmarks.support.lora_files.broken import broken_files, harmless_pickle
from benchmarks.support.lora_files.build import LoRAFile, all_files, make
from benchmarks.support.lora_files.cases import cases
from benchmarks.support.lora_files.formats import TABLE
from benchmarks.support.lora_files.sizes import Sizes


FORMATS: tuple[str, ...] = tuple(TABLE)

__all__ = ["FORMATS", "LoRAFile", "Sizes", "all_files", "broken_files", "cases", "harmless_pickle", "make"]
