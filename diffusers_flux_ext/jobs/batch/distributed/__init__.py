"""Drawing jobs on the machines of a Ray cluster. Needs `pip install "diffusers-flux-ext[ray]"`."""

from .engine import RayEngine
from .session import WorkersError


__all__ = ["RayEngine", "WorkersError"]
