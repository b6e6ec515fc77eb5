"""Translations from DiffSynth-Studio."""
