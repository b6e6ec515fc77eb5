"""Scripts that measure, and that make the tables of the documentation."""
