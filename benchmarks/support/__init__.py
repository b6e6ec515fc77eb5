"""What tests and benchmarks share: tiny modules, files of each format, all conditions, and the reference."""
