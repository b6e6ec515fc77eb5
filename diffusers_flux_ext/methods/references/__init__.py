"""Reference images (Kontext)."""
