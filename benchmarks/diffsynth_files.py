"""The released files of DiffSynth-Studio's FLUX models, by names and shapes alone: its fingerprints, and our readers.

Run from the repository's root with the reference package installed (see the README's second command):

    python -m benchmarks.diffsynth_files --write docs/diffsynth_files.md
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.support.diffsynth.released import RELEASED
from benchmarks.support.reference import import_reference
from diffusers_flux_ext.diffsynth.files import flat_keys, recognise
from diffusers_flux_ext.diffsynth.loading import load_parts


LEFT_OUT = {"04d8c1e20a1f1b25f7434f111992a33f": ("text_model.", "logit_scale", "logit_bias")}
"""By fingerprint, beginnings of keys that no reader takes: SigLIP's text model, which FLUX does not have."""

PAGE = """# Released files, by their names and shapes

Made by `python -m benchmarks.diffsynth_files --write docs/diffsynth_files.md`. DiffSynth-Studio {version} tells files
by a fingerprint: a hash of the names and shapes of all tensors. For each of the {count} fingerprints of its FLUX
models (and that of Qwen2.5-VL, which Step1X-Edit needs) the names and shapes are made here at the released size on the
meta device, without weights, until its own function gives the same hash. The readers of
`diffusers_flux_ext.diffsynth` then open these tensors: each file is recognised by its structure, and the models take
every element of it, none missing and none left over. {missing}

| file | its models there | fingerprint | tensors | read as | left out |
| --- | --- | --- | --- | --- | --- |
{rows}
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one file.

    Attributes:
        fingerprint (`str`): The hash that the reference's function gives.
        tensors (`int`): How many there are.
        kinds (`list[str]`): As what it was recognised.
        components (`list[str]`): The models that were made of it.
        left_over (`int`): Elements of the file that no model has, less those that models have beside it.
    """

    fingerprint: str
    tensors: int
    kinds: list[str]
    components: list[str]
    left_over: int


def reference_entries() -> dict[str, list[str]]:
    """Return the models of the reference's FLUX configurations by fingerprint, and Qwen2.5-VL."""
    configs = import_reference("diffsynth.configs.model_configs")
    entries: dict[str, list[str]] = {}
    qwen = [each for each in configs.qwen_image_series if each["model_name"] == "qwen_image_text_encoder"]
    for entry in (*configs.flux_series, *qwen):
        entries.setdefault(entry["model_hash"], []).append(entry["model_name"])
    return entries


def _tensors(state_dict: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for key, value in state_dict.items():
        if isinstance(value, Mapping):
            yield from _tensors(value)
        else:
            yield key, value


def _elements(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters()) if isinstance(model, nn.Module) else 0


def open_file(fingerprint: str) -> Outcome:
    """Make the names and shapes of a released file, and open it with our readers.

    Args:
        fingerprint (`str`): A key of `RELEASED`.

    Returns:
        `Outcome`
    """
    file, make = RELEASED[fingerprint]
    state_dict = make()
    found = import_reference("diffsynth.core.loader.file").hash_state_dict_keys(state_dict)
    parts = load_parts(state_dict, file, torch.float32)
    models = {name: model for part in parts for name, model in part.items()}
    if "value_encoder" in models:
        # Several files become one encoder, so a file's tensors are kept until then.
        models["value_encoder"] = models["value_encoder"].model()
    if "vision" in models:
        models["vision"] = models["vision"].model
    given = sum(t.numel() for k, t in _tensors(state_dict) if not k.startswith(LEFT_OUT.get(fingerprint, ("\n",))))
    return Outcome(
        found,
        len(flat_keys(state_dict)),
        [part.kind.what for part in recognise(state_dict, file)],
        list(models),
        given - sum(map(_elements, models.values())),
    )


def rows() -> list[str]:
    """Return the rows of the table; raise a `RuntimeError` if a file is not what the reference knows or we read."""
    lines, entries = [], reference_entries()
    for fingerprint, names in entries.items():
        if fingerprint not in RELEASED:
            continue
        outcome = open_file(fingerprint)
        if outcome.fingerprint != fingerprint or outcome.left_over:
            raise RuntimeError(f"{RELEASED[fingerprint][0]}: {outcome}")
        left = ", ".join(f"`{prefix}*`" for prefix in LEFT_OUT.get(fingerprint, ())) or "-"
        read = ", ".join(outcome.kinds)
        there = ", ".join(f"`{name}`" for name in names)
        lines.append(
            f"| {RELEASED[fingerprint][0]} | {there} | `{fingerprint}` | {outcome.tensors} | {read} | {left} |"
        )
    return lines


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page; printed by default")
    args = parser.parse_args()
    unknown = sorted(reference_entries().keys() - RELEASED.keys())
    missing = f"Not reproduced: {unknown}." if unknown else "No entry is missing."
    page = PAGE.format(
        version=version("diffsynth"), count=len(reference_entries()) - 1, missing=missing, rows="\n".join(rows())
    )
    if args.write:
        args.write.write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)


if __name__ == "__main__":
    main()
