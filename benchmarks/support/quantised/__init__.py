"""Quantised models of every kind that runs here, and what people do with them."""
