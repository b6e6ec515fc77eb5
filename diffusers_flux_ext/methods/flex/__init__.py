"""Flex.2: inpainting and control by one model."""
