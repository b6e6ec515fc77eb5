"""Figures from a GPU: sections of rows that are measured one by one into a file. See `docs/gpu.md`."""
