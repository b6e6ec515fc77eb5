"""Score the embedded tiny FLUX.1 and its EliGen LoRA on 64 held-out scenes of two and three objects.

```bash
python examples/score_tiny_eligen.py --sheet scores.png
```

Prints the share of entities whose colour and shape are found inside their own mask: with the LoRA, with the same
regions but without the LoRA, and from the global prompt alone.
"""

import argparse
from pathlib import Path

from tiny_flux.evaluate import score_entity_control, score_prompts, table
from tqdm import tqdm

import diffusers_flux_ext


def main(arguments: list[str] | None = None) -> None:
    """Draw and score.

    Args:
        arguments (`list[str]`, *optional*): Command line; the process's own by default.
    """
    model = Path(diffusers_flux_ext.tiny_flux_path())
    parser = argparse.ArgumentParser(description="Score the tiny EliGen LoRA on held-out scenes.")
    parser.add_argument("--model", type=Path, default=model, help="a saved pipeline (default: the embedded one)")
    parser.add_argument(
        "--lora", type=Path, default=model.parent / "tiny_flux_eligen_lora.safetensors", help="an EliGen LoRA"
    )
    parser.add_argument("--count", type=int, default=64, help="number of scenes (default: 64)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each drawing (default: 20)")
    parser.add_argument("--true-cfg-scale", type=float, default=2.0, help="guidance, 1 is none (default: 2)")
    parser.add_argument("--device", default="cpu", help="where to draw (default: cpu)")
    parser.add_argument("--sheet", type=Path, help="save scenes and images side by side in this file")
    parser.add_argument("--prompts", action="store_true", help="also score scenes of one object, from prompts alone")
    options = parser.parse_args(arguments)
    given = (options.count, options.steps, options.device, options.true_cfg_scale)
    rows = score_entity_control(options.model, options.lora, *given, options.sheet)
    if options.prompts:
        rows += score_prompts(options.model, *given)
    tqdm.write(table(rows))


if __name__ == "__main__":
    main()
