"""Compiled blocks in training: graphs are counted, and there are so many of them at most."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from diffusers.utils import logging

from .._compat import compiler_backend, recompilations_allowed, recompile_options


logger = logging.get_logger(__name__)

BACKEND = "inductor"
# The first block of a kind and all later ones, of two kinds: their inputs differ in gradients and strides.
GRAPHS_OF_A_SITUATION = 4


class CompiledBlocks:
    """The compiled blocks of a transformer, until it is closed.

    Lengths are symbols of the graphs, so other sizes need no other ones. After `limit` graphs nothing is compiled any
    more: inputs that fit a graph go on using it, and all others run uncompiled, which is said once.

    Args:
        transformer (`FluxTransformer2DModel`): The model, with the adapters and processors that it runs with.
        limit (`int`): How many graphs are compiled at most.
        backend (`str`, defaults to `"inductor"`): A backend of `torch.compile`.

    Attributes:
        graphs (`list[str]`): The inputs of each compiled graph, in words.
        refused (`list[str]`): Those of graphs beyond the limit, which were not compiled.
    """

    def __init__(self, transformer: Any, limit: int, backend: str | None = None) -> None:
        self.limit = limit
        self.graphs: list[str] = []
        self.refused: list[str] = []
        self._stopped = False
        self._compile = compiler_backend(backend or BACKEND)
        self._stack = ExitStack()
        # Its own limit counts the graphs of each function, and after it torch would run all of them uncompiled.
        allowed = max(256, 2 * limit)
        self._stack.enter_context(recompilations_allowed(allowed))
        repeated = transformer._repeated_blocks
        self._blocks = [module for module in transformer.modules() if type(module).__name__ in repeated]
        transformer.compile_repeated_blocks(
            backend=self._backend, fullgraph=True, dynamic=True, **recompile_options(allowed)
        )
        self._stack.callback(self._uncompile)

    def close(self) -> None:
        """Let the blocks run uncompiled again."""
        self._stack.close()

    def check(self, *ignored: Any) -> None:
        """Compile nothing more once the limit is reached; called between two passes."""
        if self._stopped or not self.refused:
            return
        self._stopped = True
        torch.compiler.set_stance("eager_on_recompile")
        self._stack.callback(torch.compiler.set_stance, "default")
        logger.warning(
            f"{len(self.graphs)} graphs of blocks were compiled, as many as `model.compile_graphs`. Inputs that fit "
            f"none of them run uncompiled from now on, which is slower. The first of them: {self.refused[0]}. "
            f"Compiled last: {'; '.join(self.graphs[-3:])}. Let batches vary less (their sizes, conditions that only "
            f"some samples have), or raise `model.compile_graphs`."
        )

    def numbers(self) -> dict[str, float]:
        """Return what a report says."""
        return {"compiled_graphs": len(self.graphs), "uncompiled_graphs": len(self.refused)}

    def describe(self) -> str:
        """Return how much was compiled, in words."""
        beyond = f"; {len(self.refused)} more were refused, and ran uncompiled" if self.refused else ""
        return f"Compiled {len(self.graphs)} graphs of blocks, {self.limit} at most{beyond}."

    def _backend(self, graph: Any, inputs: Sequence[Any], **options: Any) -> Any:
        described = _describe(inputs)
        if len(self.graphs) >= self.limit:
            self.refused.append(described)
            return graph.forward
        self.graphs.append(described)
        return self._compile(graph, inputs, **options)

    def _uncompile(self) -> None:
        for block in self._blocks:
            block._compiled_call_impl = None


def _describe(inputs: Sequence[Any]) -> str:
    """Return the activations among a graph's inputs in words; weights are alike in all graphs of a kind."""
    tensors = [each for each in inputs if isinstance(each, torch.Tensor) and not isinstance(each, torch.nn.Parameter)]
    shapes = ", ".join(str(tuple(_number(size) for size in each.shape)) for each in tensors[:6])
    return f"{shapes} {'with' if torch.is_grad_enabled() else 'without'} gradients"


def _number(size: Any) -> int:
    hint = getattr(getattr(size, "node", None), "hint", None)
    return int(size) if hint is None else int(hint)


def check_compiler(device: torch.device) -> None:
    """Raise an error if this machine cannot compile blocks for a device.

    Args:
        device (`torch.device`): Where they run.

    Raises:
        ValueError: if the device is neither a CPU nor CUDA.
        ImportError: if CUDA needs Triton, and there is none.
        RuntimeError: if there is no compiler of C or C++.
    """
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"`model.compile` is for CPUs and CUDA, but the device is {str(device)!r}. Leave `model.compile` out."
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ImportError(
            "`model.compile` on CUDA needs Triton, which is not installed: run `pip install triton` (on Windows "
            "`triton-windows`), or leave `model.compile` out."
        )
    variable, names = ("CC", ("gcc", "clang", "cc")) if device.type == "cuda" else ("CXX", _cpp_compilers())
    wanted = (os.environ[variable],) if os.environ.get(variable) else names
    if BACKEND == "inductor" and not any(shutil.which(name) for name in wanted):
        raise RuntimeError(
            f"`model.compile` needs a compiler on {device.type}, but none of {', '.join(wanted)} is on the PATH. "
            f"Install one, for example `apt install g++`, name it in the variable {variable}, or leave "
            f"`model.compile` out."
        )


def _cpp_compilers() -> tuple[str, ...]:
    return {"win32": ("cl",), "darwin": ("clang++",)}.get(sys.platform, ("g++",))
