"""Inpainting with any conditions."""
