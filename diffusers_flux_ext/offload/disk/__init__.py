"""Streaming a model's blocks from disk."""
