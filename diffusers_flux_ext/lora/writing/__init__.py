"""From LoRA updates to a file."""
