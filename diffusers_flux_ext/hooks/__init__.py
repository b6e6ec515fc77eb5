"""Hooks on models."""
