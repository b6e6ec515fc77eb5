"""Budgets and offloading: peak memory, as predicted and as measured, and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.gpu import reference
from benchmarks.gpu.kit import Kit, Missing
from benchmarks.gpu.placing import make_plan, placed, reference_steps
from benchmarks.gpu.rows import Row, Section
from benchmarks.gpu.sizes import Size


GIBS = (16, 8, 4, 1, 24, 14, 2, 12, 38)
FP8_GIBS = (16, 8, 4)
LIMITS = (16, 8, 4)
# Layers that stay on the card: cache-dit has no budget.
LAYERS = (0, 64, 256)
HOST = "cpu"


def _rows(size: Size) -> Sequence[Row]:
    toy = size.is_toy
    cases: list[tuple[str, dict[str, Any]]] = [("no offload", {})]
    cases += [("budget", {"gib": gib}) for gib in ((0.1,) if toy else GIBS)]
    cases += [("model offload", {})] if not toy else []
    cases += [("cache-dit, layerwise", {"layers that stay": layers}) for layers in LAYERS[: 1 if toy else None]]
    cases += [("sequential offload", {})] if not toy else []
    rows = [Row(way, {**more, **size.call()}, partial(_measure, way=way, more=more)) for way, more in cases]
    for limit in LIMITS[: 1 if toy else None]:
        more = {"gib": limit}
        rows.append(Row("reference, `vram_limit`", {**more, **size.call()}, partial(_measure_reference, limit=limit)))
    # Last, since the pipeline does not come back from these as it was.
    last: list[tuple[str, dict[str, Any]]] = [("budget", {"gib": gib, "blocks": "fp8"}) for gib in FP8_GIBS]
    last = [*last[: 1 if toy else None], ("group offload", {})]
    return rows + [
        Row(way, {**more, **size.call()}, partial(_measure, way=way, more=more, spoils=True)) for way, more in last
    ]


def _measure(kit: Kit, way: str, more: Mapping[str, Any], spoils: bool = False) -> dict[str, Any]:
    pipe, settings = kit.pipeline(HOST), {**kit.size.call(), **more}
    predicted = make_plan(pipe, settings) if way == "budget" else None

    def call(steps: int = kit.size.steps) -> Any:
        side, text = settings["pixels"], settings["text"]
        sizes = {"height": side, "width": side, "max_sequence_length": text}
        return pipe("a lake", num_inference_steps=steps, output_type="pt", **sizes)

    with placed(way, pipe, kit.device, settings) as returns:
        values = _timed(kit, call, lambda: call(2))
    if spoils or not returns:
        kit.forget()
    if predicted is not None:
        values |= {"predicted_gib": predicted.peak_gib, "copied_gib": predicted.streamed_gib}
        if values["peak_gib"] is not None:
            values["margin_percent"] = 100 * (1 - values["peak_gib"] / settings["gib"])
    return values


def _measure_reference(kit: Kit, limit: float) -> dict[str, Any]:
    why = reference.why_missing()
    if why is not None:
        raise Missing(f"The reference did not run: {why}.")
    transformer, sizes = kit.pipeline(HOST).transformer, kit.size.call()
    given = (transformer, limit, kit.device, sizes["pixels"], sizes["text"])
    call = reference_steps(*given, kit.size.steps)
    values = _timed(kit, call, call)
    values["notes"] = ["The reference's transformer alone: without text encoders and autoencoder."]
    return values


def _timed(kit: Kit, call: Callable[[], Any], warm_up: Callable[[], Any]) -> dict[str, Any]:
    warm_up()
    kit.clock.empty()
    seconds, peak, _ = kit.clock.peak(call)
    return {"seconds": seconds, "peak_gib": peak, "step_ms": 1000 * seconds / kit.size.steps}


BUDGETS = Section(
    "d",
    "budgets",
    "Budgets and offloading",
    "A whole call after a shorter one: time, and the most memory that PyTorch had allocated. The margin says how far "
    "that is below the budget. The models come from host memory, about 35 GiB of it. Times are relative to the call "
    "without offloading.",
    8,
    {
        "predicted_gib": "predicted, GiB",
        "peak_gib": "peak, GiB",
        "margin_percent": "margin, %",
        "copied_gib": "copied per step, GiB",
        "seconds": "s",
        "relative": "times no offload",
    },
    _rows,
    {"gib": "budget, GiB", "blocks": "blocks", "layers that stay": "layers that stay"},
    base=("no offload", "seconds"),
)
