"""The same as `flux-ext convert nexus-gen`."""

import sys

from diffusers_flux_ext.methods.nexus_gen.convert import main


if __name__ == "__main__":
    sys.exit(main())
