"""The same as `flux-ext convert step1x-edit`."""

import sys

from diffusers_flux_ext.methods.step1x_edit.convert import main


if __name__ == "__main__":
    sys.exit(main())
