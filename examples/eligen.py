"""Entities in regions, with the embedded tiny model or with FLUX.1-dev.

python examples/eligen.py
python examples/eligen.py --model black-forest-labs/FLUX.1-dev --lora DiffSynth-Studio/Eligen
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _placing import add_vram, place

from diffusers_flux_ext import EntityRegions, FluxEliGenPipeline, InpaintRegion, tiny_flux_path


TINY: dict[str, Any] = {"height": 128, "width": 128, "num_inference_steps": 20, "max_sequence_length": 32}
PROMPT = "a white background"
LEFT, RIGHT = (0.08, 0.3, 0.46, 0.7), (0.54, 0.3, 0.92, 0.7)


def main() -> None:
    """Draw two entities, then redraw one of them and keep the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="repository or folder; the embedded tiny model by default")
    parser.add_argument("--lora", help="EliGen LoRA; the embedded one by default")
    parser.add_argument("--steps", type=int, help="20 with the tiny model and 28 with another by default")
    parser.add_argument("--out", type=Path, default=Path("eligen"))
    add_vram(parser)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    pipe = FluxEliGenPipeline.from_pretrained(args.model or tiny_flux_path(), dtype=dtype)
    pipe.load_lora_weights(args.lora or str(Path(tiny_flux_path()).parent / "tiny_flux_eligen_lora.safetensors"))
    if not place(pipe, args.vram, **({"height": 128, "width": 128} if args.model is None else {})):
        pipe.to(device)
    size = dict(TINY) if args.model is None else {}
    if args.steps:
        size["num_inference_steps"] = args.steps
    guided: dict[str, Any] = {"negative_prompt": "", "true_cfg_scale": 2.0, **size}

    args.out.mkdir(parents=True, exist_ok=True)
    entities: dict[str, Any] = {"entity_prompts": ["a red circle", "a blue star"], "entity_masks": [LEFT, RIGHT]}
    image = pipe(PROMPT, **entities, **guided, generator=torch.Generator().manual_seed(0)).images[0]
    image.save(args.out / "entities.png")

    conditions = [EntityRegions(["a green square"], [RIGHT]), InpaintRegion(image, (0.5, 0.2, 1.0, 0.8))]
    redrawn = pipe(PROMPT, conditions=conditions, **guided, generator=torch.Generator().manual_seed(1)).images[0]
    redrawn.save(args.out / "redrawn.png")


if __name__ == "__main__":
    main()
