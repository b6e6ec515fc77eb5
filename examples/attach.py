"""A script of diffusers with one more line: conditions attached to its own `FluxPipeline`.

python examples/attach.py
python examples/attach.py --model black-forest-labs/FLUX.1-dev --lora DiffSynth-Studio/Eligen
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline

from diffusers_flux_ext import EntityRegions, attach_conditions, load_lora, tiny_flux_path


TINY: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 20, "max_sequence_length": 32}
TINY_LORA = Path(tiny_flux_path()).parent / "tiny_flux_eligen_lora.safetensors"
REGIONS = EntityRegions(["a red circle", "a blue star"], [(0.08, 0.3, 0.46, 0.7), (0.54, 0.3, 0.92, 0.7)])


def main() -> None:
    """Draw two entities with a pipeline of diffusers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="repository or folder; the embedded tiny model by default")
    parser.add_argument("--lora", help="EliGen LoRA; the embedded one by default")
    parser.add_argument("--steps", type=int, help="20 with the tiny model and 28 with another by default")
    parser.add_argument("--out", type=Path, default=Path("attached.png"))
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pipe = FluxPipeline.from_pretrained(args.model or tiny_flux_path(), dtype=dtype).to(device)
    load_lora(pipe, args.lora or str(TINY_LORA))
    size = dict(TINY) if args.model is None else {}
    if args.steps:
        size["num_inference_steps"] = args.steps

    attach_conditions(pipe, [REGIONS])  # the line that is new

    image = pipe("a white background", **size, generator=torch.Generator().manual_seed(0)).images[0]
    image.save(args.out)


if __name__ == "__main__":
    main()
