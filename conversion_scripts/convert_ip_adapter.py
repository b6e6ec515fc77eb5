"""The same as `flux-ext convert ip-adapter`."""

import sys

from diffusers_flux_ext.methods.ip_adapter.convert import main


if __name__ == "__main__":
    sys.exit(main())
