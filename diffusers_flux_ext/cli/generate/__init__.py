"""`flux-ext generate`: flags make a job, which is drawn."""
