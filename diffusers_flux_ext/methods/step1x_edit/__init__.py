"""Step1X-Edit: edits by instructions."""
