"""What runs in an actor of Ray: one runner, and with it one pipeline."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .parcel import Parcel, draw_parcel


# Equal versions give equal pixels.
COMPARED = ("diffusers-flux-ext", "diffusers", "torch", "transformers", "pillow")


def versions() -> dict[str, str]:
    """Return the versions of the packages that pixels depend on; builds for a device count as the same."""
    found = {}
    for name in COMPARED:
        with suppress(PackageNotFoundError):
            found[name] = version(name).partition("+")[0]
    return found


class Worker:
    """Draws jobs, one after another.

    Args:
        make_runner (`Callable`): Returns what draws them, a `JobRunner`.
        folder (`str`): Working directory of the process that hands jobs out, which is taken if it is there.
        threads (`int`): Threads of that process, which CPU kernels' rounding may depend on.
    """

    def __init__(self, make_runner: Callable[[], Any], folder: str, threads: int) -> None:
        import torch

        from ....methods.installed import load_installed_methods

        with suppress(OSError):
            os.chdir(folder)
        torch.set_num_threads(threads)
        load_installed_methods()
        self._runner = make_runner()

    def about(self) -> Mapping[str, Any]:
        """Return where this is, and on which node, and the versions of its packages."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return {"node": node, "host": socket.gethostname(), "process": os.getpid(), "versions": versions()}

    def draw(self, parcel: Parcel) -> dict[str, Any]:
        """Draw a job, see `draw_parcel`."""
        return draw_parcel(self._runner, parcel)
