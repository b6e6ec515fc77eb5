"""Convert a FLUX.1 LoRA from diffusers's layout to DiffSynth's; other layouts are read as well.

    python conversion_scripts/convert_diffusers_lora_to_diffsynth.py lora.safetensors converted.safetensors

The same as `flux-ext lora convert --to diffsynth`.
"""

import sys

from diffusers_flux_ext.cli.main import main


if __name__ == "__main__":
    sys.exit(main(["lora", "convert", *sys.argv[1:], "--to", "diffsynth"]))
