"""Broken and hostile files: seeded mutations of valid ones, and what is done with them."""
