"""Conditions: what a method adds to a denoising step."""
