"""LoRA-Fusion: several LoRAs under learned gates."""
