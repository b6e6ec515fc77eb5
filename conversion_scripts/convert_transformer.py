"""The same as `flux-ext convert transformer`."""

import sys

from diffusers_flux_ext.models.convert import main


if __name__ == "__main__":
    sys.exit(main())
