"""A training run: the loop over updates, what it reports, validation, and how it is built from a configuration."""
