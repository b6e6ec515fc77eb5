"""IP-Adapters: images as prompts."""
