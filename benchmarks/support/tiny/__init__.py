"""Tiny modules of each method with seeded weights, and inputs for them."""
