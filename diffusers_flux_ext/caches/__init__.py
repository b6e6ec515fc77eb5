"""Caches of the transformer's output between steps."""
