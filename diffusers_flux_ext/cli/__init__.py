"""The flux-ext command."""
