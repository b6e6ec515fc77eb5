"""Whether a tiny Qwen2.5-VL gives the same hidden states under two versions of transformers.

Run once per environment, from the root of this repository:

    python -m benchmarks.qwen_vl_versions write states.pt      # with the version that the tests run with
    python -m benchmarks.qwen_vl_versions compare states.pt    # with another one

The first writes weights, inputs and hidden states; the second loads the weights, makes the inputs itself and compares
both. No diffusers runs beside transformers 4, so there the two functions that the module takes from it are replaced.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from PIL import Image


def image(width: int, height: int, seed: int) -> Image.Image:
    """Return an image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def replace_diffusers() -> None:
    """Replace the modules that import diffusers by stand-ins."""
    names: dict[str, dict[str, Any]] = {
        "_devices": {"execution_device": lambda module: module.device},
        "inputs": {"__path__": []},
        "inputs.vision": {"to_pil": lambda image: image.convert("RGB")},
    }
    for name, contents in names.items():
        module = ModuleType(f"diffusers_flux_ext.{name}")
        vars(module).update(contents)
        sys.modules[module.__name__] = module


def older_config(text_config: dict[str, Any], **arguments: Any) -> Any:
    """Return the config of transformers 4, which holds the text model's entries itself."""
    return transformers.Qwen2_5_VLConfig(**{**arguments, **text_config})


def older_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the names of the first versions with Qwen2.5-VL."""
    parts = (("model.language_model.", "model."), ("model.visual.", "visual."))
    renamed = {}
    for name, weight in weights.items():
        for new, old in parts:
            name = name.replace(new, old)
        renamed[name] = weight
    return renamed


def run(path: Path, write: bool) -> None:
    """Write the file, or compare with it."""
    older = transformers.__version__.startswith("4.")
    if older:
        replace_diffusers()
    from benchmarks.support.tiny import qwen_vl as tiny
    from diffusers_flux_ext.inputs.qwen_vl import (
        IMAGE_SPAN,
        chat_text,
        hide_tokens,
        last_hidden_states,
        qwen_vl_inputs,
    )

    first, second = image(90, 50, 0), image(60, 120, 1)
    chats: dict[str, tuple[str, list[Image.Image]]] = {
        "one image": (f"look {IMAGE_SPAN} the red sign", [first]),
        "two images": (f"make {IMAGE_SPAN} like {IMAGE_SPAN} but red", [first, second]),
        "text": ("only text", []),
    }
    processor = tiny.tiny_qwen_processor()
    inputs = {name: qwen_vl_inputs(processor, chat_text(text), seen) for name, (text, seen) in chats.items()}
    with mock.patch.object(tiny, "Qwen2_5_VLConfig", older_config if older else transformers.Qwen2_5_VLConfig):
        mllm = tiny.tiny_mllm()
    hidden = inputs["two images"]["input_ids"] == inputs["two images"]["input_ids"][0, -3]
    inputs["hidden tokens"] = hide_tokens(mllm, inputs["two images"], hidden)
    if write:
        states = {name: last_hidden_states(mllm, given) for name, given in inputs.items()}
        torch.save({"weights": mllm.state_dict(), "inputs": inputs, "states": states}, path)
        return
    saved = torch.load(path, weights_only=True)
    mllm.load_state_dict(older_names(saved["weights"]) if older else saved["weights"])
    for name, given in inputs.items():
        same = all(torch.equal(tensor, saved["inputs"][name][key]) for key, tensor in given.items())
        difference = (last_hidden_states(mllm, given) - saved["states"][name]).abs().max().item()
        sys.stdout.write(f"| {transformers.__version__} | {name} | {same} | {difference:.1e} |\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    run(args.file, args.action == "write")


if __name__ == "__main__":
    main()
