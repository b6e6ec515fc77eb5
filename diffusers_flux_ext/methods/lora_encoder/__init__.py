"""LoRA-Encoder: LoRAs as a part of the prompt."""
