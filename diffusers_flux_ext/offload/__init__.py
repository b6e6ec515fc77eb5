"""Where weights lie: a VRAM budget and streaming from disk."""
