"""A VRAM budget, with the embedded tiny model or with FLUX.1-dev.

python examples/vram_budget.py
python examples/vram_budget.py --model black-forest-labs/FLUX.1-dev --lora DiffSynth-Studio/Eligen --vram 8
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from diffusers_flux_ext import EntityRegions, FluxEliGenPipeline, memory_report, tiny_flux_path


TINY: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 20, "max_sequence_length": 32}
PROMPT = "a white background"
LEFT, RIGHT = (0.08, 0.3, 0.46, 0.7), (0.54, 0.3, 0.92, 0.7)


def main() -> None:
    """Print the plan, draw two entities under it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="repository or folder; the embedded tiny model by default")
    parser.add_argument("--lora", help="EliGen LoRA; the embedded one by default")
    parser.add_argument("--vram", type=float, help="GiB of the card to use (default: 8; tiny: 0.1)")
    parser.add_argument("--fp8", action="store_true", help="store the transformer's blocks in 8 bits")
    parser.add_argument("--out", type=Path, default=Path("vram_budget.png"))
    args = parser.parse_args()

    dtype = torch.bfloat16 if args.model else torch.float32
    pipe = FluxEliGenPipeline.from_pretrained(args.model or tiny_flux_path(), dtype=dtype)
    lora = args.lora or Path(tiny_flux_path()).parent / "tiny_flux_eligen_lora.safetensors"
    pipe.load_lora_weights(lora, **({"weight_name": "model_bf16.safetensors"} if args.lora else {}))

    call = {"height": 1024, "width": 1024, "max_sequence_length": 512} if args.model else TINY
    entities = EntityRegions(["a red circle", "a blue star"], [LEFT, RIGHT])
    plan = pipe.enable_vram_budget(
        args.vram or (8 if args.model else 0.1),
        height=call["height"],
        width=call["width"],
        max_sequence_length=call["max_sequence_length"],
        conditions=[entities],
        storage_dtype=torch.float8_e4m3fn if args.fp8 else None,
    )
    sys.stdout.write(f"{plan}\n\n")
    image = pipe(PROMPT, conditions=[entities], generator=torch.Generator().manual_seed(0), **call).images[0]
    image.save(args.out)
    sys.stdout.write(f"{memory_report(pipe)}\n")


if __name__ == "__main__":
    main()
