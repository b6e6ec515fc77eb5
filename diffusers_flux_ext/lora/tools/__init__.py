"""Convert, merge, resize, extract, fuse and explain LoRA files."""
