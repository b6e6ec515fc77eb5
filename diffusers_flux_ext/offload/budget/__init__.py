"""VRAM budgets and the plans that keep them."""
