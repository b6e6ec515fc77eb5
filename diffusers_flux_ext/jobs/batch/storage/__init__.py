"""Where lists and results are: local folders, and stores that fsspec knows by a URL."""

from .files import files_beside
from .local import LocalStore
from .opening import is_url, located, open_store
from .remote import RemoteStore
from .store import CLAIMS, Holder, Store


__all__ = [
    "CLAIMS", "Holder", "LocalStore", "RemoteStore", "Store", "files_beside", "is_url", "located", "open_store",
]  # fmt: skip
