"""The configuration of a training run: its sections, and reading it from files and flags."""

try:
    import pydantic as _pydantic
except ImportError as error:
    raise ImportError("Training needs further packages: `pip install 'diffusers-flux-ext[train]'`.") from error

from .reading import ConfigurationError, read_config
from .sections import TrainingConfig


__all__ = ["ConfigurationError", "TrainingConfig", "read_config"]

del _pydantic
