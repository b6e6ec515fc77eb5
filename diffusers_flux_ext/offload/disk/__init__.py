"""Streaming a model's blocks from disk, or from host memory in training."""
