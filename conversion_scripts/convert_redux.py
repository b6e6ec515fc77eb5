"""The same as `flux-ext convert redux`."""

import sys

from diffusers_flux_ext.methods.redux.convert import main


if __name__ == "__main__":
    sys.exit(main())
