"""Loading LoRAs into a model."""
