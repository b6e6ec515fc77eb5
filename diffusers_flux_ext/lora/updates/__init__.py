"""What LoRA files do to layers: a class for each kind of update, and exact arithmetic on their factors."""
