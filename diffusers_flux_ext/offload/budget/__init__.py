"""A VRAM budget and the plan that keeps it."""
