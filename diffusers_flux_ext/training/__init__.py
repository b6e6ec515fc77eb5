"""Building blocks for training."""
