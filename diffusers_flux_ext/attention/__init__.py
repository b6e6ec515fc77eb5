"""Exact regional attention: the plan, the processor that executes it, and image prompts."""
