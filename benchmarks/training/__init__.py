"""What training on the tiny model achieves, and what a step of it costs."""
