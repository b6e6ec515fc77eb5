"""Compiled blocks, fused projections and attention backends beside each condition.

Run from the repository's root; prints the table of docs/caches.md, or writes it there:

    python -m benchmarks.compile_table --write docs/caches.md
"""

import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cache_table import print_or_write
from benchmarks.support.conditions import CASES, METHODS
from diffusers_flux_ext import FluxConditionedPipeline
from diffusers_flux_ext.testing import call_kwargs, tiny_pipeline, tiny_transformer


MARKS = "<!-- compiled: start -->", "<!-- compiled: end -->"
SIZES = {"first call": (32, 48), "again": (32, 48), "another size": (64, 48), "a third size": (80, 64)}
BACKENDS = ("_native_math", "_native_flash")


def make_pipe(names: tuple[str, ...]) -> Any:
    """Return a pipeline of its own whose transformer takes the channels of the named conditions."""
    channels = max((CASES[name].channels for name in names), default=0)
    transformer = tiny_transformer(0, in_channels=64 + channels, out_channels=64)
    return tiny_pipeline(FluxConditionedPipeline, transformer=transformer)


def draw(pipe: Any, names: tuple[str, ...], size: tuple[int, int] = SIZES["first call"]) -> torch.Tensor:
    """Float images of a guided call of three steps."""
    given = {"height": size[0], "width": size[1], "negative_prompt": "ugly", "true_cfg_scale": 2.0}
    return pipe(**call_kwargs(conditions=[CASES[name].build() for name in names], **given)).images


def compiled(names: tuple[str, ...]) -> tuple[float, list[int]]:
    """Return the largest difference from uncompiled calls, and the graphs that each call of `SIZES` compiled."""
    torch._dynamo.reset()
    plain, pipe = make_pipe(names), make_pipe(names)
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    errors, counts = [], []
    for size in SIZES.values():
        before = len(graphs)
        errors.append((draw(pipe, names, size) - draw(plain, names, size)).abs().max().item())
        counts.append(len(graphs) - before)
    return max(errors), counts


def fused(names: tuple[str, ...]) -> float:
    """Measure the largest difference that fused projections make."""
    plain, pipe = make_pipe(names), make_pipe(names)
    pipe.transformer.fuse_qkv_projections()
    return (draw(pipe, names) - draw(plain, names)).abs().max().item()


def attended(names: tuple[str, ...], backend: str) -> float | None:
    """Measure the largest difference that an attention backend makes; `None` if the call is refused."""
    pipe = make_pipe(names)
    expected = draw(pipe, names)
    pipe.transformer.set_attention_backend(backend)
    try:
        return (draw(pipe, names) - expected).abs().max().item()
    except ValueError:
        return None
    finally:
        pipe.transformer.reset_attention_backend()
        pipe.transformer.set_attention_backend("native")


def _error(value: float | None) -> str:
    if value is None:
        return "refused"
    return "0" if value == 0 else f"{value:.0e}"


def table() -> str:
    """Return the table in Markdown."""
    head = ["condition", "compiled", *(f"graphs: {name}" for name in SIZES), "fused", *BACKENDS]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in ("no condition", *METHODS):
        names = (row,) if row in CASES else ()
        error, counts = compiled(names)
        others = [fused(names), *(attended(names, backend) for backend in BACKENDS)]
        lines.append("| " + " | ".join([row, _error(error), *map(str, counts), *map(_error, others)]) + " |")
        sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it between the marks of a page."""
    print_or_write(table, MARKS, __doc__ or "")


if __name__ == "__main__":
    main()
