"""Where samples come from: tables, folders, archives and data sets, several at once."""

from .folder import FolderSource
from .parquet import ParquetSource
from .paths import FolderAccess
from .row import Row, Source
from .saved_dataset import SavedDatasetSource
from .tables import TableSource
from .web_dataset import WebDatasetSource


__all__ = [
    "FolderAccess",
    "FolderSource",
    "ParquetSource",
    "Row",
    "SavedDatasetSource",
    "Source",
    "TableSource",
    "WebDatasetSource",
]
