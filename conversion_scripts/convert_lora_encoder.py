"""The same as `flux-ext convert lora-encoder`."""

import sys

from diffusers_flux_ext.methods.lora_encoder.convert import main


if __name__ == "__main__":
    sys.exit(main())
