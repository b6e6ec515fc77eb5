"""The same as `flux-ext convert controlnet`."""

import sys

from diffusers_flux_ext.methods.control.convert import main


if __name__ == "__main__":
    sys.exit(main())
