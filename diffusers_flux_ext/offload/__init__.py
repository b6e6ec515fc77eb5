"""Placement of weights: a VRAM budget, and streaming from disk."""
