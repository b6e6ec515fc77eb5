"""The server's routes."""
