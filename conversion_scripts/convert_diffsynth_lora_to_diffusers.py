"""Convert a FLUX.1 LoRA from DiffSynth's layout to diffusers's; other layouts are read as well.

    python conversion_scripts/convert_diffsynth_lora_to_diffusers.py lora.safetensors converted.safetensors

The same as `flux-ext lora convert --to diffusers`.
"""

import sys

from diffusers_flux_ext.cli.main import main


if __name__ == "__main__":
    sys.exit(main(["lora", "convert", *sys.argv[1:], "--to", "diffusers"]))
