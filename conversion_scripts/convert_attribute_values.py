"""The same as `flux-ext convert attribute-control`."""

import sys

from diffusers_flux_ext.methods.attribute_control.convert import main


if __name__ == "__main__":
    sys.exit(main())
