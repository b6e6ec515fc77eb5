"""From a file to LoRA updates."""
