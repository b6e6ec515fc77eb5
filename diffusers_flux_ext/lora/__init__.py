"""LoRA files of every trainer: reading, writing, loading and tools."""
