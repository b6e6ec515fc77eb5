"""Weights files that are not LoRAs: layouts, configurations, reading and writing."""
