"""Random combinations of methods on both sides of a comparison with the reference."""
