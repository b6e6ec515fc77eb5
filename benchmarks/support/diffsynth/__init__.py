"""Stand-ins of DiffSynth-Studio's models for FLUX: tiny files, the released names and shapes, its own pipeline."""
