"""Nexus-Gen V2: one language model that draws, edits and describes."""
