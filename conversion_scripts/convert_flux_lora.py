"""Convert a FLUX.1 LoRA of any trainer to the layout of diffusers, kohya, ComfyUI (bfl), DiffSynth or OneTrainer.

    python conversion_scripts/convert_flux_lora.py style.safetensors style-diffusers.safetensors
    python conversion_scripts/convert_flux_lora.py style.safetensors style-kohya.safetensors --to kohya

The same as `flux-ext lora convert`.
"""

import sys

from diffusers_flux_ext.cli.main import main


if __name__ == "__main__":
    sys.exit(main(["lora", "convert", *sys.argv[1:]]))
