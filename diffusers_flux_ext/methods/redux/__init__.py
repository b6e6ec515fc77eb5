"""Redux: images as a part of the prompt."""
