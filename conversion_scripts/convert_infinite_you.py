"""The same as `flux-ext convert infinite-you`."""

import sys

from diffusers_flux_ext.methods.infinite_you.convert import main


if __name__ == "__main__":
    sys.exit(main())
