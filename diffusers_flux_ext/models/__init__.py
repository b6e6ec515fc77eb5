"""Models and attention processors."""
